import { CoppiceError, type LayerRange, type LoadRequest, readAttention } from "@coppice/core";
import type { Gpu } from "@coppice/kernels-webgpu";
import type { LayerWeights, ModelWeights } from "./model-weights.js";
import { WeightLoader } from "./weight-loader.js";

/**
 * Reads the weights of a range of layers, each once, in model order.
 * @param wide whether projections that are no codes are widened to float32
 * @throws COPPICE_BACKEND_FAILED when they do not fit the device
 */
export async function loadWeights(
  gpu: Gpu,
  request: LoadRequest,
  range: LayerRange,
  wide: boolean,
): Promise<ModelWeights> {
  const loader = new WeightLoader(gpu, request.weights, request.signal, wide);
  gpu.device.pushErrorScope("out-of-memory");
  let failure: unknown;
  let read: Omit<ModelWeights, "owned"> | undefined;
  try {
    read = await readAll(loader, request, range);
  } catch (error) {
    failure = error;
  }
  const full = await gpu.device.popErrorScope();
  if (full) {
    failure = new CoppiceError(
      "COPPICE_BACKEND_FAILED",
      `the model does not fit the device: it has no room for ${gpu.memory.bytes} bytes (${full.message})`,
      { details: { bytes: gpu.memory.bytes }, hint: "load fewer layers at once, or quantize the model" },
    );
  }
  if (read && !failure) return { ...read, owned: loader };
  loader.dispose();
  throw failure;
}

async function readAll(
  loader: WeightLoader,
  { model }: LoadRequest,
  { from, to }: LayerRange,
): Promise<Omit<ModelWeights, "owned">> {
  const embedding = from === 0 ? await loader.matrix(model.embedding, model.tied) : undefined;
  const layers = new Map<number, LayerWeights>();
  for (const { index, attention, attentionNorm, feedForwardNorm, feedForward } of model.layers.slice(
    from,
    to,
  )) {
    if (attention.kind === "other" || feedForward.kind === "other") continue;
    const moe = feedForward.kind === "moe" ? feedForward : undefined;
    const router = moe && {
      weight: await loader.values(moe.router.weight),
      bias: await loader.optionalValues(moe.router.bias),
      correction: await loader.optionalValues(moe.router.correction),
    };
    const experts = moe && (await loader.experts(moe.experts));
    layers.set(index, {
      dense: feedForward.kind === "dense" ? await loader.mlp(feedForward.mlp) : undefined,
      attentionNorm: await loader.norm(attentionNorm),
      attention: await readAttention(attention, loader),
      feedForwardNorm: await loader.norm(feedForwardNorm),
      moe: router &&
        experts && {
          router,
          ...experts,
          shared: moe.shared && (await loader.mlp(moe.shared)),
          sharedGate: moe.sharedGate && (await loader.matrix(moe.sharedGate, true)),
        },
    });
  }
  let head: ModelWeights["head"];
  if (to === model.layers.length) {
    const tied = model.tied ? embedding : undefined;
    const linear = {
      weight: tied ?? (await loader.matrix(model.head, true)),
      bias: await loader.vector(model.headBias),
      inputs: model.hiddenSize,
      outputs: model.vocabSize,
    };
    head = { norm: await loader.norm(model.finalNorm), linear };
  }
  return { embedding, layers, head };
}
