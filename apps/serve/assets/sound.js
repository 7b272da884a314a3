// Sound for the student: from the microphone, or from any file that the browser plays, as a 16-bit mono wav.

export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, k) => view.setInt16(44 + 2 * k, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Blob([view.buffer], { type: "audio/wav" });
}

// A wav as it is, since the server resamples as training did; anything else by way of the browser's decoder.
export async function asWav(file) {
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  if (String.fromCharCode(...head) === "RIFF") return file;
  const context = new AudioContext();
  try {
    const sound = await context.decodeAudioData(await file.arrayBuffer());
    const mono = new Float32Array(sound.length);
    for (let channel = 0; channel < sound.numberOfChannels; channel++)
      sound.getChannelData(channel).forEach((value, k) => { mono[k] += value / sound.numberOfChannels; });
    return wav(mono, sound.sampleRate);
  } catch {
    throw new Error("the browser cannot decode this as sound");
  } finally {
    context.close();
  }
}

// Starts recording; onLevel gets the peak of each block, onFull is called at the longest. stop() gives the wav.
export async function record(longestSeconds, onLevel, onFull) {
  if (!navigator.mediaDevices) throw new Error("browsers give the microphone to pages at localhost or https only");
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...plain } });
  const context = new AudioContext();
  const blocks = [];
  let length = 0;
  await context.audioWorklet.addModule("/recorder.js");
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  node.port.onmessage = ({ data }) => {
    blocks.push(data);
    length += data.length;
    onLevel(data.reduce((peak, value) => Math.max(peak, Math.abs(value)), 0));
    if (length > longestSeconds * context.sampleRate) onFull();
  };
  stream.getAudioTracks()[0].onended = onFull;
  context.createMediaStreamSource(stream).connect(node);
  return {
    async stop() {
      node.port.onmessage = null;
      stream.getTracks().forEach((track) => track.stop());
      const samples = new Float32Array(length);
      let at = 0;
      for (const block of blocks) { samples.set(block, at); at += block.length; }
      await context.close();
      return wav(samples, context.sampleRate);
    },
  };
}
