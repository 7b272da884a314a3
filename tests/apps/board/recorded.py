"""What boards printed, as people published it: whole lines, unedited but for their place in the file."""

from __future__ import annotations

# Orin Nano Developer Kit, JetPack 6, at rest.
ORIN_NANO = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) "
    "CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C soc0@50C gpu@49.031C "
    "tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW VDD_SOC 1475mW/1475mW"
)
# Thor, JetPack 7.2, under load: three numbers per rail, and no load of the GPU.
THOR_BUSY = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972,0%@972,0%@972,"
    "0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,2%@972] cpu@60.406C tj@63.281C soc012@58.468C "
    "gpu@62.906C soc345@63.281C VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW "
    "VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)
# Thor, JetPack 7.0, at rest: its GPU's rail reads less than nothing.
THOR_REST = (
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972,0%@972] VDD_GPU -392mW/-392mW "
    "VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)
# AGX Orin: no rail for the whole board, three that add up to it.
AGX_ORIN = (
    "01-08-2026 15:36:50 RAM 25686/125772MB (lfb 1234x4MB) SWAP 0/0MB (cached 0MB) CPU [15%@2265,10%@2265] "
    "EMC_FREQ 0%@3199 GR3D_FREQ 99%@1300 AO@45C GPU@48C Tboard@44C VDD_GPU_SOC 15000mW/15000mW "
    "VDD_CPU_CV 3500mW/3500mW VIN_SYS_5V0 18500mW/18500mW"
)

# jetson_clocks --show, Orin Nano Super, clocks free.
CLOCKS_FREE = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-5, Offline CPUs:
cpu0:  Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=960000 IdleStates: WFI=1 c7=1
cpu1:  Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=960000 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=665600000
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=60
NV Power Mode: 25W
"""
# The same family after `sudo jetson_clocks`: the memory's lower bound stays where it was.
CLOCKS_LOCKED = """\
cpu0:  Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000 IdleStates: WFI=0 c7=0
cpu1:  Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000 IdleStates: WFI=0 c7=0
GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
FAN Dynamic Speed control=disabled hwmon0_pwm1=255
NV Power Mode: MAXN_SUPER
"""
CLOCKS_REFUSED = "Error: Run this script(/usr/bin/jetson_clocks) as a root user\n"
POWER_MODE = "NV Power Mode: MAXN_SUPER\n2\n"
# trtexec's first line, by TensorRT version.
BANNER = "&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # /usr/src/tensorrt/bin/trtexec {arguments}"
