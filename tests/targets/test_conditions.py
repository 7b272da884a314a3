"""What a machine did: read from files as Linux writes them, in a tree of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from targets import conditions, energy, nvml
from targets.conditions import Watch


@pytest.fixture
def machine(tmp_path):
    """A quiet machine with two cores, as sysfs and procfs show it."""
    write(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3000000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "800000\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "9\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/hwmon/hwmon0/name": "coretemp\n",
            "sys/class/hwmon/hwmon0/temp1_input": "45500\n",
            "sys/class/hwmon/hwmon1/name": "nvme\n",
            "sys/class/hwmon/hwmon1/temp1_input": "70000\n",
            "proc/loadavg": "0.52 0.58 0.59 1/389 1234\n",
            "proc/stat": "cpu  100 0 50 1000 5 0 2 10 0 0\ncpu0 50 0 25 500 2 0 1 5 0 0\n",
            "proc/self/cgroup": "0::/user.slice/job\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 900\nnr_throttled 0\nthrottled_usec 0\n",
            "sys/fs/cgroup/user.slice/job/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user.slice/job/cpu.stat": "usage_usec 900\nnr_throttled 3\nthrottled_usec 2000\n",
        },
    )
    return tmp_path


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_quiet_machine_gives_valid_times(machine):
    seen = Watch(machine, cores=2).conditions()
    assert seen.governors == ("performance",)
    assert seen.clock_mhz == (3000.0, 3000.0)
    assert seen.temperature_c == 45.5
    assert seen.load == 0.52
    assert seen.cpu_quota == 1.5
    assert (seen.quota_throttled_ms, seen.thermal_throttles) == (0, 0)
    assert (seen.problems, seen.warnings) == ((), ())


def test_a_group_that_was_held_back_makes_times_invalid(machine):
    watch = Watch(machine, cores=2)
    write(machine, {"sys/fs/cgroup/user.slice/job/cpu.stat": "nr_throttled 5\nthrottled_usec 52000\n"})
    seen = watch.conditions()
    assert seen.quota_throttled_ms == 50
    assert seen.problems == ("throttled: the control group was held back 50 ms for its quota of 1.5 cores",)


def test_heat_makes_times_invalid(machine):
    watch = Watch(machine, cores=2)
    write(machine, {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "11\n"})
    assert watch.conditions().problems == ("throttled: the CPU slowed down for heat 4 times",)


def test_what_happens_between_is_seen(machine):
    watch = Watch(machine, cores=2)
    write(
        machine,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/class/thermal/thermal_zone0/temp": "91000\n",
            "proc/loadavg": "5.00 0.58 0.59 1/389 1234\n",
            "proc/stat": "cpu  150 0 50 1000 5 0 2 60 0 0\n",
        },
    )
    watch.look()
    seen = watch.conditions()
    assert seen.temperature_c == 91
    assert seen.steal == 0.5
    assert seen.problems == ()
    assert seen.warnings == (
        "busy: 5.0 processes ran on 2 cores",
        "50% of CPU time went to other virtual machines",
        "the clock varied from 1500 to 3000 MHz (governor performance, powersave)",
    )


def test_control_groups_of_version_1_are_read_too(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",  # the container's own, at the mount's root
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 7000000\n",
        },
    )
    assert conditions.cpu_quota(tmp_path) == 2.0
    assert conditions.quota_throttled_ms(tmp_path) == 7.0


def test_where_nothing_is_told_nothing_is_claimed(tmp_path):
    seen = Watch(tmp_path, cores=2).conditions()
    assert seen.clock_mhz is seen.cpu_quota is seen.quota_throttled_ms is seen.thermal_throttles is None
    assert seen.temperature_c is seen.load is seen.steal is None
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2596.138\n"})
    assert conditions.clocks_mhz(tmp_path) == [2596.138]


ZONE = "sys/class/powercap/intel-rapl:0"


@pytest.fixture
def rapl(tmp_path):
    write(
        tmp_path,
        {
            f"{ZONE}/name": "package-0\n",
            f"{ZONE}/max_energy_range_uj": "1000000000\n",
            f"{ZONE}/energy_uj": "999000000\n",
            f"{ZONE}:0/name": "core\n",  # a part of the package, counted with it
        },
    )
    return tmp_path


def of_rapl(root):
    counters, reasons = energy.find_counters(root)
    return [one for one in counters if one.name.startswith("RAPL")], [one for one in reasons if "RAPL" in one]


def test_energy_is_counted_over_the_counters_end(rapl):
    counters, reasons = of_rapl(rapl)
    assert ([one.name for one in counters], reasons) == (["RAPL package-0"], [])
    before = energy.read(counters)
    write(rapl, {f"{ZONE}/energy_uj": "4000000\n"})
    joules = energy.used(counters, before, energy.read(counters))
    assert joules == {"RAPL package-0": pytest.approx(5.0)}
    (found,) = energy.per_inference(joules, {"RAPL package-0": 10.0}, seconds=0.25, runs=100)
    assert (found.mj, found.above_idle_mj) == (pytest.approx(50.0), pytest.approx(25.0))


def test_a_counter_that_may_not_be_read_is_told_with_the_way_out(rapl, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied", str(rapl / ZONE / "energy_uj"))

    monkeypatch.setattr(energy.RaplCounter, "joules", denied)  # root may read whatever the mode is
    counters, reasons = of_rapl(rapl)
    assert counters == []
    assert reasons == [
        f"RAPL: no permission to read {rapl / ZONE / 'energy_uj'} (as root: chmod a+r {rapl / ZONE / 'energy_uj'})"
    ]


def test_no_counter_is_told(tmp_path):
    assert of_rapl(tmp_path) == ([], ["RAPL: none here"])


def driver(readings, code=0):
    """NVML's library with one GPU; ``code`` is what its first call returns."""

    def fill(pointer, value):
        pointer._obj.value = value
        return 0

    return SimpleNamespace(
        nvmlInit_v2=lambda: code,
        nvmlDeviceGetCount_v2=lambda count: fill(count, 1),
        nvmlDeviceGetHandleByIndex_v2=lambda index, handle: fill(handle, 1000 + index),
        nvmlDeviceGetTotalEnergyConsumption=lambda handle, out: fill(out, readings[handle.value].pop(0)),
    )


def test_a_gpu_counts_in_millijoules(tmp_path, monkeypatch):
    library = driver({1000: [4_000, 5_000, 5_250]})  # the first is the proof that it can be read
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda _: library)
    counters, reasons = energy.find_counters(tmp_path)
    assert ([one.name for one in counters], reasons) == (["NVML GPU 0"], ["RAPL: none here"])
    before = energy.read(counters)
    assert energy.used(counters, before, energy.read(counters)) == {"NVML GPU 0": 0.25}


def test_a_driver_that_refuses_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda _: driver({}, code=9))
    assert energy.find_counters(tmp_path) == ([], ["RAPL: none here", "NVML: error 9"])
