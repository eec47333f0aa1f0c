import { type LayerPlan, type RouterSpec, routeTokens } from "@coppice/core";
import { routeChoices, slotGroups } from "../route-choices.js";
import { type KernelCheck, randomValues, withBuffers, worstDifference } from "./kernel-check.js";

/** Routing of some tokens against `routeTokens` of core. @param columns as in `routeTokens` */
export function checkRouting(
  router: Omit<RouterSpec, "weight">,
  { experts, columns = experts, plan }: { experts: number; columns?: number; plan?: LayerPlan },
): KernelCheck {
  const spec: RouterSpec = { ...router, weight: routerWeight(experts) };
  const { correction: _, ...shown } = router;
  return {
    kernel: "routing",
    key: `routing ${experts} ${columns} ${JSON.stringify({ ...shown, plan })} ${router.correction !== undefined}`,
    tolerance: 1e-5,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const tokens = 9;
        const logits = randomValues(tokens * columns, 1).map((value) => 4 * value);
        const slotCount = plan?.routerMap?.length ?? columns;
        const correction = router.correction && randomValues(slotCount, 2);
        const spared = Uint32Array.from({ length: tokens }, (_, token) => token % 2);
        const groups = slotGroups(spec, slotCount, plan);
        const map = plan?.routerMap && Float32Array.from(plan.routerMap.flat());
        const expected = routeTokens(logits, tokens, spec, {
          plan,
          correction,
          spared: Uint8Array.from(spared),
        });
        const slots = empty(tokens * expected.topK);
        const gates = empty(tokens * expected.topK);
        const topK = routeChoices(gpu, {
          router: spec,
          plan,
          logits: upload(logits),
          tokens,
          columns,
          map: map && upload(map),
          correction: correction && upload(correction),
          groupOf: groups && upload(groups),
          spared: upload(spared),
          slots,
          gates,
        });
        if (topK !== expected.topK) return Number.NaN;
        const bytes = 4 * tokens * topK;
        const [a, b] = await gpu.read([
          { buffer: slots, bytes },
          { buffer: gates, bytes },
        ]);
        return Math.max(
          worstDifference(new Int32Array(a as ArrayBuffer), expected.slots),
          worstDifference(new Float32Array(b as ArrayBuffer), expected.gates),
        );
      }),
  };
}

/** Tokens of two runs that keep different experts, against `routeTokens` of core for each. */
export function checkPlannedRouting(router: Omit<RouterSpec, "weight">, experts: number): KernelCheck {
  const spec: RouterSpec = { ...router, weight: routerWeight(experts) };
  const { correction: _, ...shown } = router;
  return {
    kernel: "routing",
    key: `planned routing ${experts} ${JSON.stringify(shown)} ${router.correction !== undefined}`,
    tolerance: 1e-5,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const tokens = 9;
        const logits = randomValues(tokens * experts, 3).map((value) => 4 * value);
        const correction = router.correction && randomValues(experts, 2);
        const { topK } = router;
        const kept = [
          Array.from({ length: experts }, (_, i) => i).filter((i) => i % 3 > 0 || i < topK),
          Array.from({ length: Math.min(experts, topK + 1) }, (_, i) => experts - 1 - i),
        ];
        const blockOf = (slot: number, run: number) => 7 * run + 3 * slot + 1;
        const [start, stride] = [5, 1 + 2 * experts];
        const table = new Uint32Array(start + 2 * stride);
        kept.forEach((own, run) => {
          const words = own.flatMap((expert, slot) => [expert, blockOf(slot, run)]);
          table.set([own.length, ...words], start + run * stride);
        });
        const runs = Uint32Array.from({ length: tokens }, (_, token) => Number(token % 3 === 1));
        const [slots, gates] = [empty(tokens * topK), empty(tokens * topK)];
        routeChoices(gpu, {
          router: spec,
          logits: upload(logits),
          tokens,
          columns: experts,
          correction: correction && upload(correction),
          planned: { runs: upload(runs), table: upload(table), start, stride },
          slots,
          gates,
        });
        const bytes = 4 * tokens * topK;
        const [a, b] = await gpu.read([
          { buffer: slots, bytes },
          { buffer: gates, bytes },
        ]);
        const expected = Array.from(runs, (run, token) => {
          const own = kept[run] as number[];
          const picked = <T extends Float32Array>(values: T, from: number) =>
            Float32Array.from(own, (expert) => values[from + expert] as number);
          return routeTokens(picked(logits, token * experts), 1, spec, {
            plan: { layer: 0, experts: own },
            correction: correction && picked(correction, 0),
          });
        });
        return Math.max(
          worstDifference(
            new Int32Array(a as ArrayBuffer),
            expected.flatMap((one, token) =>
              [...one.slots].map((slot) => blockOf(slot, runs[token] as number)),
            ),
          ),
          worstDifference(
            new Float32Array(b as ArrayBuffer),
            expected.flatMap(({ gates: own }) => [...own]),
          ),
        );
      }),
  };
}

/** A description of router rows whose values nobody reads. */
const routerWeight = (experts: number): RouterSpec["weight"] => ({
  name: "router",
  dtype: "F32",
  shape: [experts, 1],
  file: "",
  begin: 0,
  end: 0,
});
