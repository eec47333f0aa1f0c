import { chunkTokens, drawMain, drawWords, orderCode, sumWords, threads } from "./draw-layout.js";
import { type KernelSource, reads, writes } from "./kernel.js";

/** WGSL of `find_peak(t, key, id)`: the largest key of the workgroup, ties to the lower id, in `peak_key[0]` and `peak_id[0]`. */
const peakCode = `
var<workgroup> peak_key: array<u32, ${threads}>;
var<workgroup> peak_id: array<u32, ${threads}>;
fn find_peak(t: u32, key: u32, id: u32) {
  peak_key[t] = key;
  peak_id[t] = id;
  for (var step = ${threads / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (t < step) {
      let other = peak_key[t + step];
      if (other > peak_key[t] || (other == peak_key[t] && peak_id[t + step] < peak_id[t])) {
        peak_key[t] = other;
        peak_id[t] = peak_id[t + step];
      }
    }
  }
  workgroupBarrier();
}`;

/** Penalises the tokens that were seen, where there is a penalty, and finds the most likely token of every chunk of a row. */
export function peaksSource(penalises: boolean): KernelSource<"vocab" | "chunks" | "penalty"> {
  const penalise = `
    if (is_finite(bits) && ((seen[row * ((p.vocab + 31u) / 32u) + id / 32u] >> (id % 32u)) & 1u) == 1u) {
      let value = bitcast<f32>(bits);
      bits = bitcast<u32>(select(value * p.penalty, value / p.penalty, value > 0.0));
      logits[row * p.vocab + id] = bits;
    }`;
  return {
    name: "draw-peaks",
    params: { vocab: "u32", chunks: "u32", penalty: "f32" },
    bindings: [
      (penalises ? writes : reads)("logits", "array<u32>"),
      ...(penalises ? [reads("seen", "array<u32>")] : []),
      writes("peaks", "array<vec2u>"),
      writes("sums", "array<u32>"),
    ],
    code: `
${orderCode}
${peakCode}
${drawMain} {
  let row = group.y;
  let begin = group.x * ${chunkTokens}u;
  var best = 0u;
  var best_id = begin;
  for (var id = begin + t; id < min(begin + ${chunkTokens}u, p.vocab); id += ${threads}u) {
    var bits = logits[row * p.vocab + id];
    ${penalises ? penalise : ""}
    let key = ordered(bits);
    if (key > best) { best = key; best_id = id; }
  }
  find_peak(t, best, best_id);
  if (t == 0u) { peaks[row * p.chunks + group.x] = vec2u(peak_key[0], peak_id[0]); }
  if (group.x > 0u) { return; }
  for (var i = t; i < ${sumWords}u; i += ${threads}u) { sums[row * ${drawWords.sums}u + i] = 0u; }
}`,
  };
}

/** The most likely token of every row, from those of its chunks. */
export const bestSource: KernelSource<"chunks"> = {
  name: "draw-best",
  params: { chunks: "u32" },
  bindings: [reads("peaks", "array<vec2u>"), writes("tokens", "array<u32>")],
  code: `
${orderCode}
${peakCode}
${drawMain} {
  var own = vec2u(0u, 0xffffffffu);
  if (t < p.chunks) { own = peaks[group.x * p.chunks + t]; }
  find_peak(t, own.x, own.y);
  if (t == 0u) { tokens[group.x] = select(0xffffffffu, peak_id[0], is_finite(unordered(peak_key[0]))); }
}`,
};
