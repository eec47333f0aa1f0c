// The checkpoint on a GPU: the original, and what is left of it under a plan, with the same weights.
import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { loadModel, openUrl } from "@coppice/checkpoint";
import { createPlan, type LayerTap, type Plan, type Runner } from "@coppice/core";
import { generateText, loadTokenizer, runnerDecoder, type Tokenizer } from "@coppice/evaluate";
import type { LayerExperts } from "@coppice/runtime";
import type { Manifest } from "./manifest.js";
import type { WritingModel } from "./writing-model.js";

/**
 * Streams the checkpoint to the device once, for all models of the page: a pruned one is a plan that names the experts that are
 * left, so that nothing is loaded for it.
 * @param progress called with the bytes that have arrived
 * @throws COPPICE_BACKEND_UNAVAILABLE without an adapter, or when the device computes wrong results
 */
export async function openWebgpuModels(
  base: string,
  { checkpoint, models }: Pick<Manifest, "checkpoint" | "models">,
  progress: (loaded: number) => void,
): Promise<WritingModel[]> {
  const loaded = new Map<string, number>();
  const folder = openUrl(`${base}${checkpoint.folder}`, checkpoint.files, {
    onProgress(arrived) {
      loaded.set(arrived.file, arrived.loaded);
      progress([...loaded.values()].reduce((sum, bytes) => sum + bytes, 0));
    },
  });
  await using opened = await loadModel(folder);
  const { model, weights } = opened;
  const tokenizer = await loadTokenizer(folder);
  const requestAdapter = async () => (await navigator.gpu?.requestAdapter()) ?? null;
  const backend = createWebgpuBackend({ name: "navigator.gpu", requestAdapter });
  const runner = await backend.load({ model, weights });
  return models.map(({ experts, kept }) => {
    const layers = kept.map((left, layer) => ({ layer, experts: left }));
    const plan = kept.some(({ length }) => length < experts) ? createPlan(model, layers) : undefined;
    return writingModel(runner, tokenizer, plan);
  });
}

/** The weights belong to all models: the first that is disposed takes them along. */
function writingModel(runner: Runner, tokenizer: Tokenizer, plan: Plan | undefined): WritingModel {
  const { contextLength, vocabSize, endTokens } = runner.model;
  const ends = new Set(endTokens);
  if (tokenizer.endToken !== undefined) ends.add(tokenizer.endToken);
  return {
    encode: (prompt) => tokenizer.encode(prompt),
    decode: (tokens) => tokenizer.decode(tokens),
    async *stream(prompt, { maxTokens, signal }) {
      const cache = runner.createCache(1);
      let experts: LayerExperts[] = [];
      const tap = {
        fields: ["routing"] as const,
        onLayer({ layer, slots }: LayerTap) {
          if (slots) experts.push({ layer, experts: slots.slice() });
        },
      };
      const observed: Pick<Runner, "run" | "draws"> = {
        ...(runner.draws && { draws: true }),
        run(request) {
          experts = [];
          return runner.run(request);
        },
      };
      const decoder = runnerDecoder(observed, { cache, tap, ...(plan && { plan }) });
      try {
        const request = { tokenizer, prompt, contextLength, vocabSize, endTokens: ends };
        const pieces = generateText(decoder, request, { maxTokens, signal });
        for (;;) {
          const { done, value } = await pieces.next();
          if (done) return value;
          yield { ...value, experts };
        }
      } finally {
        cache.dispose();
      }
    },
    dispose: () => runner.dispose(),
  };
}
