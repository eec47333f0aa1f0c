import { allocateBits, allocateMcMoe, measureSensitivity } from "@coppice/allocate";
import { applyPlan, loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { createPlan, dequantizeMatrix, Rng } from "@coppice/core";
import { divergence } from "@coppice/evaluate";
import { modelMatrices, packedSize, quantizeCheckpoint } from "@coppice/quantizers";

const formatOf = (bits) => ({ bits, groupSize: 32, symmetric: false });

/** Three bits per weight on average, of all matrices with embedding and head: chosen bits against mixes of the same bytes. */
export async function checkAverage(bench, { probes }) {
  const { whole, backend } = bench;
  const { model } = whole;
  const quantizer = await bench.quantizer("hqq");
  const matrices = modelMatrices(model).map((matrix) => ({ ...matrix, name: matrix.weight.name }));
  const shapes = new Map(matrices.map(({ name, weight }) => [name, weight.shape]));
  const bytes = (name, bits) => packedSize(shapes.get(name), formatOf(bits));
  const sizeOf = (bitsOf) => matrices.reduce((sum, matrix) => sum + bytes(matrix.name, bitsOf(matrix)), 0);
  const started = performance.now();
  const sensitivity = await measureSensitivity({
    model,
    weights: whole.weights,
    backend,
    matrices,
    bits: [2, 4, 8],
    ...(await bench.probes(probes)),
    divergence,
    quantized: async ({ name, weight }, bits) => {
      const [rows, columns] = weight.shape;
      const weights = await whole.weights.read(weight);
      const request = { name, weights, rows, columns, format: formatOf(bits), scales: "BF16" };
      return dequantizeMatrix((await quantizer.quantize(request)).matrix);
    },
  });
  const budget = (sizeOf(() => 2) + sizeOf(() => 4)) / 2;
  const rng = Rng.fromSeed(1);
  const shuffled = rng.shuffle(matrices.map(({ name }) => name));
  const wide = new Set();
  let size = sizeOf(() => 2);
  for (const name of shuffled) {
    const more = bytes(name, 4) - bytes(name, 2);
    if (size + more > budget) continue;
    size += more;
    wide.add(name);
  }
  const isFirst = ({ layer, role }) =>
    layer === undefined ? role === "embedding" : layer < model.layers.length / 2;
  const expertBytes =
    3 *
    (bytes(matrices.find(({ expert }) => expert === 0).name, 4) -
      bytes(matrices.find(({ expert }) => expert === 0).name, 2));
  const left = budget - sizeOf(({ expert }) => (expert === undefined ? 4 : 2));
  const wideExperts = Math.floor(left / expertBytes);
  const isWide = ({ layer, expert }) =>
    expert === undefined || expert * model.layers.length + layer < wideExperts;

  bench.head(
    `3 bits on average (measured in ${((performance.now() - started) / 60_000).toFixed(1)} minutes)`,
  );
  await row("4", () => 4);
  const mixes = [
    await row("2 and 4, at random", ({ name, weight }) => (wide.has(name ?? weight.name) ? 4 : 2)),
    await row("2 and 4, first half 4", (matrix) => (isFirst(matrix) ? 4 : 2)),
    await row("2 and 4, last half 4", (matrix) => (isFirst(matrix) ? 2 : 4)),
    await row(`2 and 4, ${wideExperts} experts 4`, (matrix) => (isWide(matrix) ? 4 : 2)),
  ];
  const chosenBits = ({ matrices: found }) => {
    const bits = new Map(found.map(({ name, bits }) => [name, bits]));
    return ({ weight }) => bits.get(weight.name);
  };
  const least = ({ expert }) => (expert === undefined ? 4 : 0);
  const chosen = allocateBits({ model, sensitivity, bytes, budget, least });
  const found = await row("chosen", chosenBits(chosen));
  const mc = allocateMcMoe({
    model,
    sensitivity,
    bytes,
    average: 2 + (2 * Math.floor(wideExperts / model.layers.length)) / 8,
    widths: [2, 4],
  });
  await row("MC-MoE's program, 2 and 4", chosenBits(mc));

  const dropping = allocateBits({ model, sensitivity, bytes, budget, least, prune: "uniform" });
  const gone = (layer) => dropping.dropped.find((one) => one.layer === layer)?.experts ?? [];
  const keptOf = (layer) => [0, 1, 2, 3, 4, 5, 6, 7].filter((expert) => !gone(layer).includes(expert));
  const { source, oldName } = await pruned(keptOf);
  const bitsBefore = chosenBits(dropping);
  const bitsOf = (matrix) => bitsBefore({ weight: { name: oldName(matrix) } });
  await row(`chosen, keep ${keptOf(0).length}`, bitsOf, source);
  await source.close();

  const best = Math.max(...mixes.map(({ mean }) => mean));
  const nearest = Math.min(...mixes.map(({ kl }) => kl));
  bench.demand(chosen.bytes <= budget, `chosen takes ${chosen.bytes} of ${budget} bytes`);
  bench.demand(
    found.kl < nearest,
    `KL ${found.kl.toFixed(4)} below that of all mixes of the same bytes, ${nearest.toFixed(4)}`,
  );
  bench.demand(
    found.mean > best,
    `mean ${found.mean.toFixed(3)} above that of all mixes of the same bytes, ${best.toFixed(3)}`,
  );

  /** Quantizes a checkpoint into a folder, and judges what is read back. */
  async function row(name, bitsOf, source = whole) {
    const out = bench.place(name);
    const { tensorBytes } = await quantizeCheckpoint(source, folderTarget(out), {
      quantizer,
      format: (matrix) => formatOf(bitsOf(matrix)),
    });
    return bench.showFolder(name, out, tensorBytes);
  }

  /** The checkpoint with some experts alone, and what its matrices were called before. */
  async function pruned(keptOf) {
    const plan = createPlan(
      model,
      model.layers.map(({ index }) => ({ layer: index, experts: keptOf(index) })),
    );
    const out = bench.place("pruned");
    await applyPlan(whole, plan, folderTarget(out));
    const oldName = ({ weight, layer, expert }) =>
      expert === undefined
        ? weight.name
        : weight.name.replace(`experts.${expert}.`, `experts.${keptOf(layer)[expert]}.`);
    return { source: await loadModel(await openFolder(out)), oldName };
  }
}
