import type { LayerRange, MlpSpec, MoeModel, TensorRef } from "@coppice/core";
import {
  checkAttention,
  checkElementwise,
  checkEmbedding,
  checkExperts,
  checkMatmul,
  checkMerge,
  checkNorm,
  checkPlannedRouting,
  checkRotary,
  checkRouting,
  checkTargets,
  checkUnfold,
  type Gpu,
  type KernelCheck,
  leastColumns,
  selfCheck,
  type WeightFormat,
} from "@coppice/kernels-webgpu";
import { smallAttention } from "./check-attention-kernels.js";
import type { RunnerSettings } from "./runner.js";
import { commonFormat, floatFormat } from "./weight-format.js";

/**
 * Runs every kernel that a model needs on small values against formulas in float64, before its first use on a device; kernels for
 * larger batches before the first batch that is so large.
 * @throws COPPICE_BACKEND_UNAVAILABLE with the name of the first kernel that is wrong
 */
export async function checkKernels(
  gpu: Gpu,
  model: MoeModel,
  range: LayerRange,
  settings: Pick<RunnerSettings, "canReadCodes" | "wide">,
): Promise<void> {
  await selfCheck(gpu, [
    ...plainChecks(model, range),
    ...productChecks(model, range, { ...settings, half: false }, 1),
  ]);
}

const known = new WeakMap<Gpu, WeakMap<MoeModel, Set<number>>>();

/** As `checkKernels`, for the products of a batch of so many tokens. */
export async function checkBatch(
  gpu: Gpu,
  model: MoeModel,
  range: LayerRange,
  tokens: number,
  settings: RunnerSettings,
): Promise<void> {
  const rows = [1, 2, 4, 8, 32, 511].find((most) => tokens <= most) ?? 512;
  const models = known.get(gpu) ?? new WeakMap<MoeModel, Set<number>>();
  const done = models.get(model) ?? new Set<number>();
  if (done.has(rows)) return;
  await selfCheck(gpu, productChecks(model, range, settings, rows === 511 ? 33 : rows));
  known.set(gpu, models.set(model, done.add(rows)));
}

/** As `checkKernels`, for what is used where runs are computed together. */
export async function checkGroupKernels(gpu: Gpu, model: MoeModel, { from, to }: LayerRange): Promise<void> {
  const checks: KernelCheck[] = [];
  for (const { feedForward } of model.layers.slice(from, to)) {
    if (feedForward.kind !== "moe" || feedForward.router.groups) continue;
    const { weight, skip: _, ...router } = feedForward.router;
    checks.push(checkPlannedRouting(router, weight.shape[0] as number));
    const [{ up, down }] = feedForward.experts as [MlpSpec];
    for (const ref of [up, down]) {
      const { kind } = floatFormat(ref);
      if (kind !== "quantized") checks.push(checkMerge(kind));
    }
  }
  await selfCheck(gpu, checks);
}

function plainChecks(model: MoeModel, { from, to }: LayerRange): KernelCheck[] {
  const checks = [
    checkElementwise(),
    checkNorm(model.finalNorm.kind, 70),
    checkTargets(200),
    ...smallAttention(model, { from, to }).map((small) => checkAttention({ ...small, way: "split" })),
  ];
  for (const { attention, attentionNorm, feedForward } of model.layers.slice(from, to)) {
    checks.push(checkNorm(attentionNorm.kind, 70), checkNorm(attentionNorm.kind, 70, true));
    if (attention.kind === "other") continue;
    if (attention.rotary) checks.push(checkRotary(attention.rotary.interleaved, attention.rotary.dimensions));
    if (attention.kind === "mla") checks.push(checkUnfold());
    if (feedForward.kind !== "moe") continue;
    const { weight, skip: _, ...router } = feedForward.router;
    checks.push(checkRouting(router, { experts: weight.shape[0] as number }));
  }
  return checks;
}

function productChecks(
  model: MoeModel,
  { from, to }: LayerRange,
  { half, canReadCodes, wide }: RunnerSettings,
  rows: number,
): KernelCheck[] {
  const checks: KernelCheck[] = [];
  const matrix = (weight: TensorRef, bias: TensorRef | undefined) => {
    const format = commonFormat([weight], canReadCodes, wide);
    const columns = smallColumns(format, weight.shape[1] as number);
    // As many outputs as it takes for the same tiles.
    const outputs = rows === 512 && (weight.shape[0] as number) >= 512 ? 512 : 20;
    checks.push(checkMatmul({ format, rows, columns, outputs, bias: bias !== undefined, half }));
  };
  const mlp = (specs: readonly MlpSpec[], topK: number, scaled: boolean) => {
    const [first] = specs as [MlpSpec];
    const hidden = first.down.shape[0] as number;
    const shared = {
      tokens: Math.min(rows, 40),
      topK: Math.min(topK, 3),
      experts: 4,
      outputs: 20,
      sorted: rows > 8,
      half,
    };
    for (const { refs, columns, activation, bias } of [
      {
        refs: specs.flatMap(({ up, gate }) => (gate ? [up, gate] : [up])),
        columns: hidden,
        activation: first.activation,
        bias: first.upBias,
      },
      {
        refs: specs.map(({ down }) => down),
        columns: first.width,
        activation: undefined,
        bias: first.downBias,
      },
    ]) {
      const format = commonFormat(refs, canReadCodes);
      const shape = {
        ...shared,
        format,
        columns: smallColumns(format, columns),
        bias: bias !== undefined,
        activation,
        scaled: scaled && activation !== undefined,
        perChoice: activation === undefined,
      };
      checks.push(checkExperts(shape));
      // Of so many tokens, thousands may go to one expert.
      if (rows === 512) checks.push(checkExperts({ ...shape, tile: 128 }));
    }
  };
  if (from === 0) {
    const format = commonFormat([model.embedding], canReadCodes, wide && model.tied);
    checks.push(checkEmbedding(format, 9, smallColumns(format, model.hiddenSize)));
  }
  for (const { attention, feedForward } of model.layers.slice(from, to)) {
    if (attention.kind !== "other") matrix(attention.query.weight, attention.query.bias);
    if (feedForward.kind === "moe") {
      const { router, experts } = feedForward;
      matrix({ ...router.weight, dtype: "F32" }, router.bias);
      mlp(experts, router.topK, router.scalesInput === true);
    }
  }
  if (to === model.layers.length) matrix(model.head, model.headBias);
  return checks;
}

/** Few columns, read the same way: in vectors, in groups, by as many threads. */
function smallColumns(format: WeightFormat, columns: number): number {
  const least = leastColumns({ format, columns });
  if (format.kind === "quantized") return format.groupSize * Math.ceil(least / format.groupSize);
  return least + (columns % 4 === 0 ? 8 : 6);
}
