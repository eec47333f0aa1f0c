import {
  bins,
  chunkTokens,
  digits,
  drawMain,
  drawWords,
  goals,
  mostPower,
  orderCode,
  sumWords,
  threads,
} from "./draw-layout.js";
import { longProductCode } from "./float64-code.js";
import { type KernelSource, reads, writes } from "./kernel.js";

const stepParams = {
  vocab: "u32",
  chunks: "u32",
  /** Place in the order of digits; sums of three and states of two steps are kept. */
  step: "u32",
  digit: "u32",
  /** The digit of the step before, and what it is searched for. */
  was: "u32",
  goal: "u32",
  /** 1: it is the first of its search; of the first search. */
  begins: "u32",
  first: "u32",
  top_k: "u32",
  /** In units of 2^-32. */
  top_p: "u32",
  /** 1: tokens lie by descending weight, 0: by id. */
  sorted: "u32",
  /** 1 / temperature. */
  scale: "f32",
  /** Most that power may be under min-p. */
  limit: "f32",
} as const;

/** 1 + step, modulo 3, are the sums that a step clears for the next; its own come before, and those that it reads before these. */
const stateCode = `
struct State { top: f32, key: u32, id: u32, spare: u32, goal: vec2u, before: vec2u, whole: vec2u }
${longProductCode}
fn plus(a: vec2u, b: vec2u) -> vec2u {
  let low = a.x + b.x;
  return vec2u(low, a.y + b.y + select(0u, 1u, low < a.x));
}
fn minus(a: vec2u, b: vec2u) -> vec2u { return vec2u(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x)); }
fn less(a: vec2u, b: vec2u) -> bool { return a.y < b.y || (a.y == b.y && a.x < b.x); }
fn share(a: vec2u, part: u32) -> vec2u {
  return plus(vec2u(long_product(a.x, part).y, 0u), long_product(a.y, part));
}

var<workgroup> now: State;
var<workgroup> sum_low: array<u32, ${threads}>;
var<workgroup> sum_high: array<u32, ${threads}>;
var<workgroup> sum_count: array<u32, ${threads}>;

// Where the goal lies in the sums of the step before: \`now\` gets its digit, and what is left of the goal.
fn settle(t: u32, row: u32) {
  var state = states[2u * row + (p.step + 1u) % 2u];
  let past = row * ${drawWords.sums}u + (p.step + 2u) % 3u * ${sumWords}u;
  var weights: array<vec2u, 4>;
  var counts: array<u32, 4>;
  var weight = vec2u();
  var count = 0u;
  for (var i = 0u; i < 4u; i++) {
    let at = past + 3u * (4u * t + i);
    weights[i] = vec2u(atomicLoad(&sums[at]), atomicLoad(&sums[at + 1u]));
    counts[i] = atomicLoad(&sums[at + 2u]);
    weight = plus(weight, weights[i]);
    count += counts[i];
  }
  var end = weight;
  var end_count = count;
  for (var by = 1u; by < ${threads}u; by *= 2u) {
    sum_low[t] = end.x;
    sum_high[t] = end.y;
    sum_count[t] = end_count;
    workgroupBarrier();
    if (t >= by) {
      end = plus(end, vec2u(sum_low[t - by], sum_high[t - by]));
      end_count += sum_count[t - by];
    }
    workgroupBarrier();
  }
  if (t == ${threads - 1}u) {
    sum_low[0] = end.x;
    sum_high[0] = end.y;
    sum_count[0] = end_count;
  }
  workgroupBarrier();
  if (p.begins == 1u) {
    state.key = 0u;
    state.id = 0u;
    state.before = vec2u();
    if (p.first == 1u) { state.whole = vec2u(sum_low[0], sum_high[0]); }
    if (p.goal == ${goals.count}u) {
      state.goal = vec2u(min(p.top_k, sum_count[0]) - 1u, 0u);
    } else if (p.goal == ${goals.share}u) {
      state.goal = share(state.whole, p.top_p);
      if (any(state.goal != vec2u())) { state.goal = minus(state.goal, vec2u(1u, 0u)); }
    } else {
      if (p.sorted == 1u && p.limit < ${mostPower}.0) {
        let likely = past + 3u * ${bins}u;
        let left = vec2u(atomicLoad(&sums[likely]), atomicLoad(&sums[likely + 1u]));
        if (less(left, state.whole)) { state.whole = left; }
      }
      state.goal = share(state.whole, uniforms[row]);
    }
  }
  if (t == 0u) { now = state; }
  workgroupBarrier();
  let counts_tokens = p.goal == ${goals.count}u;
  var passed = minus(end, weight);
  var begin = select(passed, vec2u(end_count - count, 0u), counts_tokens);
  if (less(state.goal, begin)) { return; }
  for (var i = 0u; i < 4u; i++) {
    let next = plus(begin, select(weights[i], vec2u(counts[i], 0u), counts_tokens));
    if (less(state.goal, next)) {
      state.goal = minus(state.goal, begin);
      state.before = plus(state.before, passed);
      if (p.was < 3u) { state.key = (state.key << 10u) | (4u * t + i); }
      else { state.id = (state.id << 10u) | (4u * t + i); }
      if (p.was == 4u) { state.whole = plus(state.before, weights[i]); }
      now = state;
      return;
    }
    begin = next;
    passed = plus(passed, weights[i]);
  }
}`;

/**
 * One digit: finds that of the step before, and adds up weights and counts of all tokens that have these digits by their next.
 * Sums are exact, in units of 2^-43, so that they do not depend on the order in which threads add. Behind the last digit it writes the token.
 */
export const stepSource: KernelSource<keyof typeof stepParams> = {
  name: "draw-step",
  params: stepParams,
  bindings: [
    reads("logits", "array<u32>"),
    reads("peaks", "array<vec2u>"),
    reads("uniforms", "array<u32>"),
    writes("sums", "array<atomic<u32>>"),
    writes("states", "array<State>"),
    writes("tokens", "array<u32>"),
  ],
  code: `
${orderCode}
${stateCode}
var<workgroup> low: array<atomic<u32>, ${bins + 1}>;
var<workgroup> high: array<atomic<u32>, ${bins + 1}>;
var<workgroup> number: array<atomic<u32>, ${bins + 1}>;

fn fixed(weight: f32) -> vec2u {
  let bits = bitcast<u32>(weight);
  let m = (bits & 0x7fffffu) | 0x800000u;
  let by = i32(bits >> 23u) - 107;
  if (by <= 0) { return vec2u(m >> u32(-by), 0u); }
  return vec2u(m << u32(by), m >> u32(32 - by));
}

fn add(bin: u32, weight: vec2u) {
  let before = atomicAdd(&low[bin], weight.x);
  atomicAdd(&high[bin], weight.y + select(0u, 1u, before + weight.x < before));
  atomicAdd(&number[bin], 1u);
}

// The largest logit of the row.
fn find_top(t: u32, row: u32) {
  sum_low[t] = 0u;
  if (t < p.chunks) { sum_low[t] = peaks[row * p.chunks + t].x; }
  for (var step = ${threads / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (t < step) { sum_low[t] = max(sum_low[t], sum_low[t + step]); }
  }
  workgroupBarrier();
  if (t == 0u) { now.top = bitcast<f32>(unordered(sum_low[0])); }
}

${drawMain} {
  let row = group.y;
  for (var i = t; i <= ${bins}u; i += ${threads}u) {
    atomicStore(&low[i], 0u);
    atomicStore(&high[i], 0u);
    atomicStore(&number[i], 0u);
  }
  if (p.was == ${digits.none}u) { find_top(t, row); } else { settle(t, row); }
  workgroupBarrier();
  let state = now;
  if (p.digit == ${digits.none}u) {
    if (t == 0u) { tokens[row] = select(0xffffffffu, state.id, is_finite(bitcast<u32>(state.top))); }
    return;
  }
  let begin = group.x * ${chunkTokens}u;
  for (var id = begin + t; id < min(begin + ${chunkTokens}u, p.vocab); id += ${threads}u) {
    let bits = logits[row * p.vocab + id];
    if (!is_finite(bits)) { continue; }
    let power = (state.top - bitcast<f32>(bits)) * p.scale;
    if (!(power < ${mostPower}.0)) { continue; }
    let key = u32(power * 0x1p25f);
    var bin = 0u;
    if (p.digit < 3u) {
      if (p.digit > 0u && key >> (30u - 10u * p.digit) != state.key) { continue; }
      bin = (key >> (20u - 10u * p.digit)) & 1023u;
    } else {
      if (p.sorted == 1u && key != state.key) { continue; }
      if (p.sorted == 0u && power > p.limit) { continue; }
      if (p.digit == 4u && id >> 10u != state.id) { continue; }
      bin = select(id >> 10u, id & 1023u, p.digit == 4u);
    }
    let weight = fixed(exp(-power));
    add(bin, weight);
    if (p.digit == 0u && power <= p.limit && p.limit < ${mostPower}.0) { add(${bins}u, weight); }
  }
  workgroupBarrier();
  let own = row * ${drawWords.sums}u + p.step % 3u * ${sumWords}u;
  for (var i = t; i <= ${bins}u; i += ${threads}u) {
    let count = atomicLoad(&number[i]);
    if (count == 0u) { continue; }
    let weight = vec2u(atomicLoad(&low[i]), atomicLoad(&high[i]));
    let before = atomicAdd(&sums[own + 3u * i], weight.x);
    atomicAdd(&sums[own + 3u * i + 1u], weight.y + select(0u, 1u, before + weight.x < before));
    atomicAdd(&sums[own + 3u * i + 2u], count);
  }
  if (group.x > 0u) { return; }
  if (t == 0u) { states[2u * row + p.step % 2u] = state; }
  let next = row * ${drawWords.sums}u + (p.step + 1u) % 3u * ${sumWords}u;
  for (var i = t; i < ${sumWords}u; i += ${threads}u) { atomicStore(&sums[next + i], 0u); }
}`,
};
