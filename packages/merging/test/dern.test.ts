import { createPlan, type LayerPlan, parsePlan, type UnitSource } from "@coppice/core";
import { beforeAll, describe, expect, test } from "vitest";
import { merge } from "./merge.js";
import { atUnitLength, families, inner, type SlowExperts, type SlowModel, slowModel } from "./slow-layers.js";
import { mergedUnits, type View, viewsOf } from "./slow-merge.js";

interface Segment {
  readonly expert: number;
  readonly unit: number;
}

// One of each routing order.
describe.each(families.filter((name) => name !== "olmoe" && name !== "deepseek_v2"))("dern on %s", (name) => {
  let slow: SlowModel;

  beforeAll(async () => {
    slow = await slowModel(name);
  });

  /** Mean cosine of two units over the vectors by which they are compared. */
  function similarities(layer: SlowExperts, view: View) {
    const vectors = layer.usage.map((_, expert) =>
      viewsOf(layer, expert, view).map((set) => set.map(atUnitLength)),
    );
    return (a: Segment, b: Segment) => {
      const [x, y] = [vectors[a.expert] as number[][][], vectors[b.expert] as number[][][]];
      return (
        x.reduce((sum, set, s) => sum + inner(set[a.unit] as number[], y[s]?.[b.unit] as number[]), 0) /
        x.length
      );
    };
  }

  /** How large the activations of a unit are. */
  function magnitude(layer: SlowExperts, { expert, unit }: Segment, view: View): number {
    const tokens = layer.units[expert] as readonly (readonly number[])[];
    if (view !== "weights")
      return tokens.reduce((sum, u) => sum + Math.abs(u[unit] as number), 0) / tokens.length;
    const vector = layer.vectors[expert]?.[unit] as readonly number[];
    const hidden = layer.outputs[expert]?.[0]?.length as number;
    const rows = vector.slice(0, -hidden);
    const half = rows.length / 2;
    const norm = (v: readonly number[]) => Math.sqrt(inner(v, v));
    return norm(rows.slice(0, half)) * norm(rows.slice(half));
  }

  /** The three nearest by router logits, as the option `candidates` says. */
  function candidatesOf(layer: SlowExperts, expert: number, retained: readonly number[], count: number) {
    const column = (e: number) => atUnitLength(layer.logits.map((z) => z[e] as number));
    const like = (e: number) => inner(column(expert), column(e));
    return [...retained].sort((a, b) => like(b) - like(a)).slice(0, count);
  }

  test.each([
    // Above this, some segments join a unit and others do not.
    { align: "weights", threshold: 0.2, candidates: undefined },
    { align: "weights", threshold: 0.2, candidates: 2 },
    { align: "activations", threshold: 0.6, candidates: undefined },
    { align: "both", threshold: 0.4, candidates: 3 },
  ] as const)("by $align, threshold $threshold, candidates $candidates", async (options) => {
    const { align, threshold, candidates = 8 } = options;
    const plans = await merge("dern", { ...slow.source, statistics: slow.statistics, keep: 4 }, options);
    expect(parsePlan(createPlan(slow.source.model, plans), slow.source.model).layers).toHaveLength(
      plans.length,
    );
    let joined = 0;
    let discarded = 0;
    // Every layer works alike; one is enough for a family.
    const [plan, layer] = [plans[0] as LayerPlan, slow.layers[0] as SlowExperts];
    const { experts: retained } = plan;
    expect(plan.merge).toBeUndefined();
    const score = (e: number) => (layer.usage[e] as number) * (layer.gates[e] as number);
    const dropped = layer.usage.flatMap((_, e) => (retained.includes(e) ? [] : [e]));
    if (!name.startsWith("deepseek")) {
      expect(Math.min(...retained.map(score))).toBeGreaterThanOrEqual(Math.max(...dropped.map(score)));
    }
    const similar = similarities(layer, align);
    const width = layer.vectors[0]?.length as number;
    const hidden = layer.outputs[0]?.[0]?.length as number;
    const members = new Map(retained.map((e) => [e, Array.from({ length: width }, (): Segment[] => [])]));
    for (const expert of dropped.filter((e) => (layer.usage[e] as number) > 0)) {
      const homes = candidatesOf(layer, expert, retained, candidates);
      for (let unit = 0; unit < width; unit++) {
        const all = homes.flatMap((home) =>
          Array.from({ length: width }, (_, u) => ({
            home,
            u,
            like: similar({ expert, unit }, { expert: home, unit: u }),
          })),
        );
        const best = all.reduce((x, y) => (y.like > x.like ? y : x));
        if (best.like < threshold) discarded++;
        else {
          joined++;
          members.get(best.home)?.[best.u]?.push({ expert, unit });
        }
      }
    }
    expect(joined).toBeGreaterThan(0);
    expect(discarded).toBeGreaterThan(0);

    let worst = 0;
    retained.forEach((expert, slot) => {
      const sources = plan.units?.[slot] as UnitSource[] | null;
      const received = members.get(expert) as Segment[][];
      if (received.every((list) => list.length === 0)) {
        expect(sources).toBeNull();
        return;
      }
      const found = mergedUnits(layer, sources ?? []);
      found.forEach((vector, unit) => {
        const all = [{ expert, unit }, ...(received[unit] as Segment[])];
        const n = all.map((member) => layer.usage[member.expert] as number);
        const put = all.map((member, i) => (n[i] as number) * magnitude(layer, member, align));
        const share = (values: readonly number[], i: number) =>
          all.length === 1 ? 1 : (values[i] as number) / values.reduce((a, b) => a + b, 0);
        vector.forEach((value, at) => {
          const weights = at < vector.length - hidden ? n : put;
          const expected = all.reduce(
            (sum, member, i) =>
              sum + share(weights, i) * (layer.vectors[member.expert]?.[member.unit]?.[at] as number),
            0,
          );
          worst = Math.max(worst, Math.abs(value - expected));
        });
      });
    });
    expect(worst).toBeLessThan(1e-6);
  });
});
