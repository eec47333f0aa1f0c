import { allocateUnits, type UnitGroup, type UnitOption } from "@coppice/allocate";
import { type SpanProgram, solveSpans, spanSolver } from "@coppice/attention";
import { Rng } from "@coppice/core";
import { highs } from "@coppice/solver-highs";
import { describe, expect, it } from "vitest";

const solver = await highs.create({}, undefined);

function spanProgram(seed: number): SpanProgram {
  const rng = Rng.fromSeed(seed);
  const layers = [4, 4, 3];
  const spans = [16, 64, 128, 256, 1024];
  const lengths = [1024, 2048];
  return {
    layers,
    losses: Float64Array.from(
      { length: 11 * spans.length },
      (_, i) => rng.uniform() / (1 + (i % spans.length)) ** 3,
    ),
    costs: Float64Array.from(
      spans.flatMap((span) => lengths.map((length) => Math.min(span * (length / 1024), length))),
    ),
    budgets: lengths.map((length) => Math.floor((0.15 + 0.4 * rng.uniform()) * 11 * length)),
    ...(seed % 3 > 0 && { rulesPerLayer: (seed % 3) as 1 | 2 }),
  };
}

interface Width extends UnitOption {
  readonly bits: number;
}

function unitGroups(seed: number): UnitGroup<Width>[] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: 3 }, (_, layer) => ({
    name: `layer ${layer}`,
    units: Array.from({ length: 6 }, () => {
      const worth = rng.uniform();
      return [0, 2, 4].map((bits) => ({ bits, bytes: 1000 * bits, loss: worth * 4 ** -bits }));
    }),
    rules: [{ counts: ({ bits }: Width) => bits > 0, least: 2 + rng.integer(2), most: 5 }],
  }));
}

describe("programs that highs solves", () => {
  it.each([0, 1, 2, 3, 4, 5])("have the same spans as by the method's own solver: %i", (seed) => {
    const program = spanProgram(seed);
    const [own, other] = [solveSpans(program), spanSolver(solver)(program)];
    expect(own?.optimal).toBe(true);
    expect(other?.optimal).toBe(true);
    expect(other?.loss).toBeCloseTo(own?.loss as number, 9);
    const losses = Array.from(other?.choice ?? [], (rule, head) => program.losses[5 * head + rule] as number);
    expect(losses.reduce((sum, loss) => sum + loss, 0)).toBeCloseTo(own?.loss as number, 9);
  });

  it("have no spans where the own solver finds none", () => {
    const program = { ...spanProgram(1), budgets: [100, 100] };
    expect(solveSpans(program)).toBeUndefined();
    expect(spanSolver(solver)(program)).toBeUndefined();
  });

  it.each([1, 2, 3])("have the same bits as by the own allocator: %i", (seed) => {
    const groups = unitGroups(seed);
    for (const budget of [26_000, 34_000, 60_000]) {
      const [own, other] = [allocateUnits(groups, { budget }), allocateUnits(groups, { budget, solver })];
      expect(other.loss).toBeCloseTo(own.loss, 9);
      expect(other.optimal).toBe(true);
      expect(other.bytes).toBeLessThanOrEqual(budget);
      expect(allocateUnits(groups, { budget, solver, below: own.loss })).toBeNull();
    }
  });

  it("are refused where no choice meets the rules", () => {
    const groups = unitGroups(1).map((group) => ({
      ...group,
      rules: [...(group.rules ?? []), { counts: ({ bits }: Width) => bits === 0, least: 5 }],
    }));
    expect(() => allocateUnits(groups, { budget: 60_000, solver })).toThrow(
      /no choice within 60000 bytes meets all rules/,
    );
  });
});
