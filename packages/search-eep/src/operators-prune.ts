import type { Rng } from "@coppice/core";
import type { Subsets } from "./genome.js";
import { type Layout, repairSubsets } from "./layout.js";

/** A uniformly random subset for every group. */
export function randomSubsets(rng: Rng, layout: Layout): number[][] {
  return repairSubsets(
    layout,
    layout.groups.map((group) => rng.sample(group.experts, layout.keep)),
  );
}

/** For every group the subset of a uniformly chosen member of `sources`. */
export function mixSubsets(rng: Rng, sources: readonly Subsets[]): number[][] {
  const first = sources[0] as Subsets;
  return first.map((_, g) => [...(rng.pick(sources)[g] as readonly number[])]);
}

/** Replaces `swaps` kept experts by dropped ones in `groups` groups; fewer where fewer can be swapped. */
export function swapExperts(
  rng: Rng,
  layout: Layout,
  subsets: Subsets,
  change: { groups: number; swaps: number },
): number[][] {
  const changed = new Set(rng.sample(layout.groups.length, change.groups));
  const swapped = subsets.map((subset, g) => {
    const { experts } = layout.groups[g] as Layout["groups"][number];
    if (!changed.has(g)) return [...subset];
    const swaps = Math.min(change.swaps, subset.length, experts - subset.length);
    const out = new Set(rng.sample(subset.length, swaps));
    const dropped = Array.from({ length: experts }, (_, expert) => expert).filter(
      (expert) => !subset.includes(expert),
    );
    const into = rng.sample(dropped.length, swaps).map((i) => dropped[i] as number);
    return [...subset.filter((_, i) => !out.has(i)), ...into];
  });
  return repairSubsets(layout, swapped);
}
