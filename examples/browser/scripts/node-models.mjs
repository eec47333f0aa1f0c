// The models of the page's WebGPU in Node, on the cpu backend. For the tests and for check-browser.mjs.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { cpu } from "@coppice/backend-cpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { createPlan, createRegistry } from "@coppice/core";
import { generate, loadTokenizer } from "@coppice/evaluate";

/** @typedef {import("../src/manifest.ts").Manifest} Manifest */

/**
 * The checkpoint, and the plans under which the page runs it.
 * @param {string} models a folder that make-models.mjs wrote
 */
export async function openNodeModels(models) {
  /** @type {Manifest} */
  const manifest = JSON.parse(await readFile(join(models, "models.json"), "utf8"));
  const folder = await openFolder(join(models, manifest.checkpoint.folder));
  const { model, weights, close } = await loadModel(folder);
  const tokenizer = await loadTokenizer(folder);
  const backend = await createRegistry([cpu]).create("backend", "cpu", {}, undefined);
  const runner = await backend.load({ model, weights });
  await close();
  const plans = manifest.models.map(({ kept }) =>
    createPlan(
      model,
      kept.map((experts, layer) => ({ layer, experts })),
    ),
  );
  return {
    /**
     * Tokens that every model writes.
     * @param {string} prompt
     * @param {number} maxTokens
     */
    async write(prompt, maxTokens) {
      const texts = [];
      for (const plan of plans) {
        const { tokens } = await generate(runner, tokenizer, prompt, { plan, maxTokens });
        texts.push([...tokens]);
      }
      return texts;
    },
    dispose: () => runner.dispose(),
  };
}
