/** Threads of every kernel that draws. */
export const threads = 256;
/** Tokens that one workgroup looks at: at least as many as there are bins, so that most have something to add to each. */
export const chunkTokens = 4096;
/** Digits of keys and ids have 10 bits. */
export const bins = 1024;
/** A weight and a count for every bin, and for what min-p leaves; three words each. */
export const sumWords = 3 * (bins + 1);
/** Ids have two digits. */
export const drawVocabulary = 2 ** 20;
/** Tokens whose weight is below e^-29 are never drawn. */
export const mostPower = 29;

/** Words of the work buffers of one row. */
export const drawWords = { sums: 3 * sumWords, states: 2 * 10 } as const;

/** Digits of a key are 0 to 2, those of an id 3 and 4; of no digit before the first. */
export const digits = { key: [0, 1, 2], id: [3, 4], none: 5 } as const;
/** What a digit is searched for: the end of the first `top_k` tokens, of a share of the weight, or the token that is drawn. */
export const goals = { count: 0, share: 1, token: 2 } as const;

// Bits, not floats, are looked at where a value may be NaN or infinite, because WGSL lets a compiler take them for impossible.
export const orderCode = `
fn ordered(bits: u32) -> u32 {
  if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0u; }
  if ((bits & 0x7fffffffu) == 0u) { return 0x80000000u; }
  return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}
fn unordered(key: u32) -> u32 { return select(~key, key & 0x7fffffffu, (key >> 31u) == 1u); }
fn is_finite(bits: u32) -> bool { return (bits & 0x7f800000u) != 0x7f800000u; }
`;

/** WGSL: the signature of an entry point. */
export const drawMain = `@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32)`;
