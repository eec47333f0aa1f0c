import type { LayerPlan, UnitSource } from "@coppice/core";
import { beforeAll, describe, expect, test } from "vitest";
import { merge } from "./merge.js";
import { families, type SlowExperts, type SlowModel, slowModel } from "./slow-layers.js";
import { membersOf, mergedUnits, slowAssign, unitCosts, type View, viewsOf } from "./slow-merge.js";

// One of each routing order.
describe.each(families.filter((name) => name !== "olmoe" && name !== "deepseek_v2"))(
  "hidden units on %s",
  (name) => {
    let slow: SlowModel;

    beforeAll(async () => {
      slow = await slowModel(name);
    });

    /** The permutations of every member of a slot, by the definition. */
    function slowOrders(layer: SlowExperts, leader: number, members: readonly number[], view: View) {
      const target = viewsOf(layer, leader, view);
      return new Map(
        members.map((member) => {
          const identity = (target[0] as number[][]).map((_, unit) => unit);
          if (member === leader) return [member, identity];
          return [member, slowAssign(unitCosts(viewsOf(layer, member, view), target))];
        }),
      );
    }

    test.each(["weights", "activations", "both"] as const)(
      "are aligned by %s and averaged in the leader's order",
      async (view) => {
        const plans = await merge(
          "m-smoe",
          { ...slow.source, statistics: slow.statistics, keep: 4 },
          { align: view, weights: "uniform" },
        );
        let aligned = 0;
        // Every layer works alike; one is enough for a family.
        const [plan] = plans as [LayerPlan];
        const layer = slow.layers[0] as SlowExperts;
        membersOf(plan).forEach((members, slot) => {
          const sources = plan.units?.[slot] as UnitSource[] | null;
          if (members.length === 1) {
            expect(sources).toBeNull();
            return;
          }
          aligned++;
          const leader = plan.experts[slot] as number;
          const orders = slowOrders(layer, leader, members, view);
          expect(sources?.map(({ expert, to }) => [expert, to])).toEqual([...orders]);
          const places = new Map(
            members.map((m) => [
              m,
              (orders.get(m) as number[]).map((_, u) => (orders.get(m) as number[]).indexOf(u)),
            ]),
          );
          let worst = 0;
          const weight = 1 / members.length;
          const found = mergedUnits(layer, sources ?? []);
          found.forEach((vector, unit) => {
            vector.forEach((value, i) => {
              const expected = members.reduce((sum, member) => {
                const from = places.get(member)?.[unit] as number;
                return sum + weight * (layer.vectors[member]?.[from]?.[i] as number);
              }, 0);
              worst = Math.max(worst, Math.abs(value - expected));
            });
          });
          expect(worst).toBeLessThan(1e-6);
        });
        expect(aligned).toBeGreaterThan(0);
      },
    );
  },
);
