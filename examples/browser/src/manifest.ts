import * as v from "valibot";

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

/** Files by their names in URLs. */
const fileList = v.array(v.object({ name: v.string(), size: count }));

const manifestSchema = v.object({
  /** Prompts to begin with. */
  prompts: v.pipe(v.array(v.string()), v.minLength(1)),
  /** The model that all began with as safetensors, for WebGPU. */
  checkpoint: v.object({
    folder: v.string(),
    files: fileList,
    bytes: count,
  }),
  models: v.pipe(
    v.array(
      v.object({
        label: v.string(),
        /** Folder of the exported model, beside this file. */
        folder: v.string(),
        /** All that the folder holds; what is not here is not asked for. */
        files: fileList,
        /** Of all files of the folder. */
        bytes: count,
        /** Experts of every layer in the model that all began with. */
        experts: v.pipe(count, v.minValue(1), v.maxValue(512)),
        /** Those that are left, layer by layer, in the order in which the exported model numbers them. */
        kept: v.array(v.array(count)),
      }),
    ),
    v.minLength(1),
  ),
});

/** models.json: what there is to load. `scripts/make-models.mjs` writes it. */
export type Manifest = v.InferOutput<typeof manifestSchema>;
export type ModelEntry = Manifest["models"][number];

/** @throws Error with what to do, when the file is missing or not what the script writes */
export async function readManifest(base: string, signal: AbortSignal): Promise<Manifest> {
  const url = `${base}models.json`;
  const response = await fetch(url, { signal });
  if (!response.ok) {
    throw new MissingModels(`${url} answers with status ${response.status}.`);
  }
  const result = v.safeParse(manifestSchema, await response.json().catch(() => undefined));
  if (result.success) return result.output;
  throw new MissingModels(
    `${url} is not usable: ${v.getDotPath(result.issues[0]) ?? "its top"}: ${result.issues[0].message}`,
  );
}

/** There are no models to load. */
export class MissingModels extends Error {}
