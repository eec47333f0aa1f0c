import { Sampler, type SamplingOptions } from "@coppice/evaluate";
import fc from "fast-check";
import { describe, expect, it } from "vitest";

/**
 * Probabilities of all tokens, from the definitions, in float64: every step works on the whole distribution that the
 * one before left.
 */
function probabilities(
  logits: readonly number[],
  options: SamplingOptions,
  seen: readonly number[],
): number[] {
  const { temperature = 1, topK, topP = 1, minP = 0, repetitionPenalty: penalty = 1 } = options;
  const scores = logits.map((logit, id) => {
    const penalised = !seen.includes(id) ? logit : logit > 0 ? logit / penalty : logit * penalty;
    return penalised / temperature;
  });
  const softmax = (kept: readonly boolean[]) => {
    const powers = scores.map((score, id) => (kept[id] ? Math.exp(score) : 0));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / sum);
  };
  const rank = (id: number) =>
    scores.filter((score, other) => score > (scores[id] as number) || (score === scores[id] && other < id))
      .length;
  let kept = scores.map((_, id) => topK === undefined || rank(id) < topK);
  let p = softmax(kept);
  kept = kept.map((is, id) => {
    const before = p.reduce((sum, value, other) => (rank(other) < rank(id) ? sum + value : sum), 0);
    return is && (topP === 1 || before < topP);
  });
  p = softmax(kept);
  const most = Math.max(...p);
  return softmax(kept.map((is, id) => is && (p[id] as number) >= minP * most));
}

function frequencies(logits: readonly number[], options: SamplingOptions, seen: readonly number[]): number[] {
  const draws = 4000;
  const counts = logits.map(() => 0);
  // A new sampler for every draw where a penalty would change the next one.
  const once = options.repetitionPenalty !== undefined;
  let sampler = new Sampler(options, seen);
  for (let i = 0; i < draws; i++) {
    if (once) sampler = new Sampler({ ...options, seed: i }, seen);
    const id = sampler.next(Float32Array.from(logits));
    counts[id] = (counts[id] as number) + 1;
  }
  return counts.map((count) => count / draws);
}

const logits = [2, 0.5, -1, 1.25, 1.75, -3, 0.25, -20, 1.5, -0.75];

describe("Sampler", () => {
  it.each<[SamplingOptions, number[]]>([
    [{ temperature: 1 }, []],
    [{ temperature: 0.5 }, []],
    [{ temperature: 1, topK: 3 }, []],
    [{ temperature: 1, topP: 0.7 }, []],
    [{ temperature: 2, topP: 0.999 }, []],
    [{ temperature: 1, minP: 0.3 }, []],
    [{ temperature: 1, topK: 5, topP: 0.8 }, []],
    [{ temperature: 1.5, topK: 6, topP: 0.9, minP: 0.35 }, []],
    [{ temperature: 1, repetitionPenalty: 3 }, [0, 2, 9]],
    [{ temperature: 0.8, repetitionPenalty: 0.5, topK: 4 }, [1, 3]],
  ])("draws with the probabilities of %j", (options, seen) => {
    const expected = probabilities(logits, options, seen);
    const found = frequencies(logits, options, seen);
    for (const [id, p] of expected.entries()) {
      if (p === 0) expect([id, found[id]]).toEqual([id, 0]);
      // Five standard deviations.
      else expect(Math.abs((found[id] as number) - p)).toBeLessThan(5 * Math.sqrt(0.25 / 4000));
    }
  });

  it("never draws what the definitions leave out, for any logits", () => {
    const anyLogits = fc.array(fc.integer({ min: -40, max: 40 }), { minLength: 1, maxLength: 40 });
    const anyOptions = fc.record({
      temperature: fc.double({ min: 0.1, max: 5, noNaN: true }),
      topK: fc.integer({ min: 1, max: 50 }),
      topP: fc.double({ min: 0.01, max: 1, noNaN: true }),
      minP: fc.double({ min: 0, max: 1, noNaN: true }),
      seed: fc.integer(),
    });
    fc.assert(
      fc.property(anyLogits, anyOptions, (values, options) => {
        const p = probabilities(values, options, []);
        const id = new Sampler(options, []).next(Float32Array.from(values));
        // Sums that meet a bound exactly may fall on either side of it: such a token is one of the next likely.
        const likely = Math.min(...p.filter((value) => value > 0));
        const whole = probabilities(values, { temperature: options.temperature }, []);
        const least = Math.min(...whole.filter((_, other) => p[other] === likely));
        return (whole[id] as number) >= least * 0.999;
      }),
      { numRuns: 300 },
    );
  });

  it("takes the most likely token at temperature 0, the lower id of equal ones, and keeps the logits", () => {
    const row = Float32Array.of(1, 3, 3, -1);
    const sampler = new Sampler({ repetitionPenalty: 2 }, []);
    expect([sampler.next(row), sampler.next(row), sampler.next(row)]).toEqual([1, 2, 1]);
    expect([...row]).toEqual([1, 3, 3, -1]);
    expect(sampler.takesMostLikely).toBe(false);
    expect(new Sampler({ topP: 0.5 }, []).takesMostLikely).toBe(true);
    expect(new Sampler({ temperature: 0.1 }, []).takesMostLikely).toBe(false);
  });

  it("finds the nucleus of a large vocabulary", () => {
    const flat = new Float32Array(50_000);
    flat[40_000] = 12;
    const drawn = new Set<number>();
    const sampler = new Sampler({ temperature: 1, topP: 0.5, seed: 7 }, []);
    for (let i = 0; i < 20; i++) drawn.add(sampler.next(flat));
    expect([...drawn]).toEqual([40_000]);
    // The likely token has 0.765 of the probability, so that 0.9 reaches into the flat rest, lowest ids first.
    const wide = new Sampler({ temperature: 1, topP: 0.9, seed: 7 }, []);
    for (let i = 0; i < 100; i++) drawn.add(wide.next(flat));
    expect(drawn.size).toBeGreaterThan(5);
    const share = Math.ceil((0.9 * (Math.exp(12) + 49_999) - Math.exp(12)) / 1);
    expect(Math.max(...[...drawn].filter((id) => id !== 40_000))).toBeLessThan(share);
  });

  it.each([
    [{ temperature: 101 }, /temperature is 101, expected 0 to 100/],
    [{ topK: 0 }, /topK is 0/],
    [{ topK: 1.5 }, /topK/],
    [{ topP: 1.1 }, /topP/],
    [{ minP: -0.1 }, /minP/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty/],
    [{ seed: 0.5 }, /seed/],
  ])("refuses %j", (options, message) => {
    expect(() => new Sampler(options, [])).toThrow(message);
  });

  it("says when there is nothing to draw from", () => {
    const nothing = new Float32Array(4).fill(Number.NaN);
    expect(() => new Sampler({ temperature: 1 }, []).next(nothing)).toThrow(
      expect.objectContaining({ code: "COPPICE_BACKEND_FAILED" }),
    );
    expect(new Sampler({ temperature: 1 }, []).next(Float32Array.of(Number.NaN, 1, Number.NaN))).toBe(1);
  });
});
