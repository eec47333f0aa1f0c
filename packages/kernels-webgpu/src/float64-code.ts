/** WGSL of `long_product(a, b) -> vec2u`: all 64 bits of a product, low and high. */
export const longProductCode = `
fn long_product(a: u32, b: u32) -> vec2u {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let cross = (a & 0xffffu) * (b >> 16u);
  let other = (a >> 16u) * (b & 0xffffu);
  let middle = (low >> 16u) + (cross & 0xffffu) + (other & 0xffffu);
  return vec2u(
    (low & 0xffffu) | (middle << 16u),
    (a >> 16u) * (b >> 16u) + (cross >> 16u) + (other >> 16u) + (middle >> 16u));
}`;

/**
 * WGSL of float64 in integers, because WGSL has none and its float32 may be contracted: `Wide` is ±(hi:lo) 2^e with hi:lo of 53
 * bits, or 0. Products and sums are rounded to nearest, ties to even, as IEEE 754 does. Exponents are not limited, so what
 * float64 would lose below 2^-1022 or beyond 2^1024 is not lost here; float32 has no such values.
 *
 * * `narrow_times(c, w) -> Wide`: c times a float32, given by its bits
 * * `wide_sum(a, b) -> Wide`
 * * `wide_bits(a) -> u32`: the bits of the nearest float32
 */
export const float64Code = `
struct Wide { negative: u32, e: i32, hi: u32, lo: u32 }

${longProductCode}

// hi:lo shifted right; bit 0 is set when anything else was lost.
fn shift_sticky(lo: u32, hi: u32, by: u32) -> vec2u {
  if (by == 0u) { return vec2u(lo, hi); }
  if (by < 32u) {
    let lost = lo & ((1u << by) - 1u);
    return vec2u((lo >> by) | (hi << (32u - by)) | select(0u, 1u, lost != 0u), hi >> by);
  }
  if (by < 64u) {
    let lost = lo | (hi & ((1u << (by - 32u)) - 1u));
    return vec2u((hi >> (by - 32u)) | select(0u, 1u, lost != 0u), 0u);
  }
  return vec2u(select(0u, 1u, (lo | hi) != 0u), 0u);
}

// 53 bits and what follows them: below, at or above one half.
fn wide_rounded(negative: u32, e: i32, lo: u32, hi: u32, up: bool) -> Wide {
  if (!up) { return Wide(negative, e, hi, lo); }
  let next = lo + 1u;
  let top = hi + select(0u, 1u, next == 0u);
  if (top == 0x200000u) { return Wide(negative, e + 1, 0x100000u, 0u); }
  return Wide(negative, e, top, next);
}

fn narrow_times(c: Wide, bits: u32) -> Wide {
  let negative = c.negative ^ (bits >> 31u);
  var m = bits & 0x7fffffu;
  var e = i32((bits >> 23u) & 255u) - 150;
  if (e == -150) {
    if (m == 0u) { return Wide(negative, 0, 0u, 0u); }
    let by = countLeadingZeros(m) - 8u;
    m <<= by;
    e = -149 - i32(by);
  } else { m |= 0x800000u; }
  if (c.hi == 0u) { return Wide(negative, 0, 0u, 0u); }
  let low = long_product(c.lo, m);
  let high = long_product(c.hi, m);
  let middle = low.y + high.x;
  let top = high.y + select(0u, 1u, middle < low.y);
  let by = select(23u, 24u, top >= 4096u);
  let lost = low.x & ((1u << by) - 1u);
  let lo = (low.x >> by) | (middle << (32u - by));
  let half = 1u << (by - 1u);
  let up = lost > half || (lost == half && (lo & 1u) == 1u);
  return wide_rounded(negative, c.e + e + i32(by), lo, (middle >> by) | (top << (32u - by)), up);
}

fn wide_sum(x: Wide, y: Wide) -> Wide {
  if (x.hi == 0u) {
    if (y.hi == 0u) { return Wide(x.negative & y.negative, 0, 0u, 0u); }
    return y;
  }
  if (y.hi == 0u) { return x; }
  let swapped = y.e > x.e || (y.e == x.e && (y.hi > x.hi || (y.hi == x.hi && y.lo > x.lo)));
  var a = x;
  var b = y;
  if (swapped) { a = y; b = x; }
  // Three bits more, the last of which stands for all that are lost.
  var lo = a.lo << 3u;
  var hi = (a.hi << 3u) | (a.lo >> 29u);
  var e = a.e;
  let less = shift_sticky(b.lo << 3u, (b.hi << 3u) | (b.lo >> 29u), u32(min(a.e - b.e, 64)));
  if (a.negative == b.negative) {
    let sum = lo + less.x;
    hi += less.y + select(0u, 1u, sum < lo);
    lo = sum;
    if (hi >= 0x1000000u) {
      lo = (lo >> 1u) | (hi << 31u) | (lo & 1u);
      hi >>= 1u;
      e++;
    }
  } else {
    hi = hi - less.y - select(0u, 1u, lo < less.x);
    lo -= less.x;
    if ((hi | lo) == 0u) { return Wide(0u, 0, 0u, 0u); }
    let by = select(countLeadingZeros(hi) - 8u, countLeadingZeros(lo) + 24u, hi == 0u);
    if (by >= 32u) { hi = lo << (by - 32u); lo = 0u; }
    else if (by > 0u) { hi = (hi << by) | (lo >> (32u - by)); lo <<= by; }
    e -= i32(by);
  }
  let rest = lo & 7u;
  lo = (lo >> 3u) | (hi << 29u);
  return wide_rounded(a.negative, e, lo, hi >> 3u, rest > 4u || (rest == 4u && (lo & 1u) == 1u));
}

fn wide_bits(a: Wide) -> u32 {
  let sign = a.negative << 31u;
  if (a.hi == 0u) { return sign; }
  let e = a.e + 52;
  if (e > 127) { return sign | 0x7f800000u; }
  // 24 bits, fewer for subnormal values, with two more to round by.
  let kept = shift_sticky(a.lo, a.hi, u32(27 + clamp(-126 - e, 0, 64))).x;
  let m = kept >> 2u;
  let rounded = m + select(0u, 1u, (kept & 3u) == 3u || (kept & 7u) == 6u);
  if (e < -126) { return sign | rounded; }
  // A carry into the 25th bit raises the exponent.
  return sign | ((u32(e + 126) << 23u) + rounded);
}
`;

/** The words of a `Wide` for a coefficient: sign, exponent, upper 21 bits, lower 32. Subnormal ones count as 0. */
export function wideWords(value: number): [number, number, number, number] {
  const words = new Uint32Array(new Float64Array([value]).buffer);
  const [lo, high] = words as unknown as [number, number];
  const exponent = (high >>> 20) & 0x7ff;
  if (exponent === 0) return [high >>> 31, 0, 0, 0];
  return [high >>> 31, (exponent - 1075) >>> 0, (high & 0xfffff) | 0x100000, lo];
}
