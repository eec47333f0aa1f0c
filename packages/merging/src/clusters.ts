/** How the distance of two clusters follows from those of their members; `ward` takes Euclidean distances. */
export type Linkage = "average" | "single" | "complete" | "ward";

/**
 * Agglomerative clustering: from single items, the two nearest clusters become one until `count` are left. Ties go to the
 * pair with the lower first items.
 * @param distances [n][n], symmetric
 * @returns clusters of ascending items, by ascending first item
 */
export function cluster(
  distances: readonly (readonly number[])[],
  count: number,
  linkage: Linkage,
): number[][] {
  const clusters = distances.map((_, item) => [item]);
  const between = distances.map((row) => [...row]);
  while (clusters.length > count) {
    let [first, second] = [0, 1];
    for (let i = 0; i < clusters.length; i++) {
      for (let j = i + 1; j < clusters.length; j++) {
        if ((between[i]?.[j] as number) < (between[first]?.[second] as number)) [first, second] = [i, j];
      }
    }
    const [a, b] = [clusters[first] as number[], clusters[second] as number[]];
    const [toFirst, toSecond] = [between[first] as number[], between[second] as number[]];
    const apart = toFirst[second] as number;
    for (let other = 0; other < clusters.length; other++) {
      const pair = [toFirst[other] as number, toSecond[other] as number, apart] as const;
      const sizes = [a.length, b.length, (clusters[other] as number[]).length] as const;
      const distance = linked(pair, sizes, linkage);
      toFirst[other] = distance;
      (between[other] as number[])[first] = distance;
    }
    clusters[first] = [...a, ...b].sort((x, y) => x - y);
    clusters.splice(second, 1);
    between.splice(second, 1);
    for (const row of between) row.splice(second, 1);
  }
  return clusters;
}

/** Distance of the union of two clusters, which are `apart`, to a third one (Lance and Williams 1967). */
function linked(
  [a, b, apart]: readonly [number, number, number],
  [sizeA, sizeB, size]: readonly [number, number, number],
  linkage: Linkage,
): number {
  switch (linkage) {
    case "single":
      return Math.min(a, b);
    case "complete":
      return Math.max(a, b);
    case "average":
      return (sizeA * a + sizeB * b) / (sizeA + sizeB);
    case "ward": {
      const squares = (sizeA + size) * a * a + (sizeB + size) * b * b - size * apart * apart;
      return Math.sqrt(Math.max(0, squares) / (sizeA + sizeB + size));
    }
  }
}
