import { Rng } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

const draws = (rng: Rng, count: number) => Array.from({ length: count }, () => rng.uniform());

describe("Rng", () => {
  // Frozen: other numbers would make every run that was begun with an earlier release impossible to resume.
  test("gives the numbers it has always given", () => {
    const rng = Rng.fromSeed(42);
    expect(draws(rng, 3)).toEqual([0.06801951871677991, 0.772241266527191, 0.48270732443407693]);
    expect([rng.normal(), rng.normal(), rng.normal()]).toEqual([
      -0.9099131541079014, 2.042483251533173, 0.09992613567710049,
    ]);
    expect([rng.integer(10), rng.integer(1000), rng.integer(2 ** 40)]).toEqual([8, 244, 288463569166]);
    expect(rng.sample(10, 4)).toEqual([1, 3, 2, 8]);
    expect(rng.state).toEqual({
      generator: [1450241837, -1793309414, 700742058, -1830143361],
      spareNormal: -1.668170550116523,
    });
  });

  test("depends on the seed alone", () => {
    expect(draws(Rng.fromSeed(7), 20)).toEqual(draws(Rng.fromSeed(7), 20));
    expect(draws(Rng.fromSeed(7), 20)).not.toEqual(draws(Rng.fromSeed(8), 20));
  });

  test("seeds that lie close begin with numbers that do not", () => {
    for (const call of [0, 1, 2, 5]) {
      const values = Array.from(
        { length: 4000 },
        (_, seed) => draws(Rng.fromSeed(seed), call + 1)[call] as number,
      );
      const mean = values.reduce((a, b) => a + b) / values.length;
      // Standard deviation of the mean: 0.0046.
      expect(Math.abs(mean - 0.5)).toBeLessThan(0.02);
      const lag = values
        .slice(1)
        .reduce((sum, value, i) => sum + (value - 0.5) * ((values[i] as number) - 0.5), 0);
      expect(Math.abs((lag * 12) / values.length)).toBeLessThan(0.07);
    }
    const far = [1, 1 + 2 ** 32, -1, 2 ** 52, 0].map((seed) => Rng.fromSeed(seed).uniform());
    expect(new Set(far).size).toBe(far.length);
  });

  test("continues from its state, through JSON, at any point", () => {
    fc.assert(
      fc.property(
        fc.integer(),
        fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 30 }),
        (seed, calls) => {
          const rng = Rng.fromSeed(seed);
          const call = (on: Rng, which: number): unknown =>
            [
              () => on.uniform(),
              () => on.normal(),
              () => on.integer(9),
              () => on.shuffle([1, 2, 3, 4]),
              () => on.bernoulli(0.5),
            ][which]?.();
          for (const which of calls) call(rng, which);
          const restored = Rng.fromState(JSON.parse(JSON.stringify(rng.state)));
          for (const which of [1, 0, 1, 3, 2, 4, 1]) expect(call(restored, which)).toEqual(call(rng, which));
        },
      ),
    );
  });

  test("reading the state changes nothing", () => {
    const rng = Rng.fromSeed(1);
    const { state } = rng;
    expect(rng.state).toEqual(state);
    rng.normal();
    expect(rng.state).not.toEqual(state);
    expect(Rng.fromState(state).uniform()).toBe(Rng.fromSeed(1).uniform());
  });

  test("uniform numbers lie in [0, 1) and fill it evenly", () => {
    const values = draws(Rng.fromSeed(3), 20_000);
    expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...values)).toBeLessThan(1);
    for (let bin = 0; bin < 10; bin++) {
      const count = values.filter((value) => Math.floor(value * 10) === bin).length;
      // Mean 2000, standard deviation 42.
      expect(Math.abs(count - 2000)).toBeLessThan(210);
    }
    // More than the 32 bits of one draw of the generator.
    expect(values.some((value) => !Number.isInteger(value * 2 ** 33))).toBe(true);
  });

  test("normal numbers have mean 0, variance 1 and the tails they should", () => {
    const rng = Rng.fromSeed(4);
    const values = Array.from({ length: 20_000 }, () => rng.normal());
    const mean = values.reduce((a, b) => a + b) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(0.035);
    expect(Math.abs(variance - 1)).toBeLessThan(0.05);
    // P(|x| > 2) = 0.0455, so 910 with a standard deviation of 29.
    expect(Math.abs(values.filter((value) => Math.abs(value) > 2).length - 910)).toBeLessThan(150);
  });

  test("integers, picks, samples and shuffles stay in their ranges", () => {
    fc.assert(
      fc.property(fc.integer(), fc.integer({ min: 1, max: 40 }), fc.nat(40), (seed, limit, wanted) => {
        const rng = Rng.fromSeed(seed);
        const count = Math.min(wanted, limit);
        const value = rng.integer(limit);
        expect(Number.isInteger(value) && value >= 0 && value < limit).toBe(true);
        const sample = rng.sample(limit, count);
        expect(new Set(sample).size).toBe(count);
        expect(sample.every((item) => item >= 0 && item < limit)).toBe(true);
        const items = Array.from({ length: limit }, (_, i) => i);
        expect(rng.shuffle(items)).toBe(items);
        expect(items.toSorted((a, b) => a - b)).toEqual(Array.from({ length: limit }, (_, i) => i));
        expect(items).toContain(rng.pick(items));
      }),
    );
  });

  test("every order of a shuffle is as likely as another", () => {
    const rng = Rng.fromSeed(6);
    const seen = new Map<string, number>();
    for (let i = 0; i < 6000; i++) {
      const order = rng.shuffle([0, 1, 2]).join("");
      seen.set(order, (seen.get(order) ?? 0) + 1);
    }
    expect(seen.size).toBe(6);
    // Mean 1000, standard deviation 29.
    for (const count of seen.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
  });

  test("bernoulli holds its probability", () => {
    const rng = Rng.fromSeed(9);
    const hits = Array.from({ length: 10_000 }, () => rng.bernoulli(0.3)).filter(Boolean).length;
    expect(Math.abs(hits - 3000)).toBeLessThan(230);
    expect(rng.bernoulli(0)).toBe(false);
    expect(rng.bernoulli(1)).toBe(true);
  });
});
