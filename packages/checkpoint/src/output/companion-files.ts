import { CoppiceError } from "@coppice/core";
import type { LoadedCheckpoint } from "../load.js";
import { indexFileName } from "../tensor-files.js";
import { bytesContent, rangeContent } from "./content.js";
import { carriedProvenance, provenanceFileName, provenanceText } from "./provenance.js";
import { type OutputFile, outputFile } from "./write-files.js";

/** Tokenizer, generation settings, templates, licences: what a checkpoint folder needs besides its weights. */
const companionFile = /\.(json|txt|model|jinja|tiktoken|vocab|bpe)$|^(LICEN[CS]E|NOTICE|USE_POLICY)/i;
/** Indexes of weights in other formats; their files are not copied either. */
const foreignIndex = /\.index\.json$/i;
/** Largest companion file that is copied: tokenizers have up to some 40 MB. */
const companionBytes = 256_000_000;

/**
 * The small files that go along unchanged, but for what `coppice.json` of an older release says of a plan (`recordPlan`).
 * @param written names of those that are written anew, besides config and index
 */
export async function companionFiles(
  loaded: Pick<LoadedCheckpoint, "model" | "folder" | "sources">,
  written: readonly string[],
  options: { signal?: AbortSignal | undefined } = {},
): Promise<OutputFile[]> {
  const { folder, sources } = loaded;
  const others = new Set(["config.json", indexFileName, ...written]);
  const entries = (await folder.list()).filter(
    ({ name, size }) =>
      companionFile.test(name) && !foreignIndex.test(name) && !others.has(name) && size <= companionBytes,
  );
  return Promise.all(
    entries.map(async ({ name, size }) => {
      const provenance =
        name === provenanceFileName ? await carriedProvenance(loaded, options.signal) : undefined;
      return provenance
        ? textFile(name, provenanceText(provenance))
        : outputFile(name, [rangeContent(sources, name, 0, size)]);
    }),
  );
}

export function textFile(name: string, text: string): OutputFile {
  return outputFile(name, [bytesContent(new TextEncoder().encode(text))]);
}

/** @throws COPPICE_FORMAT_TRUNCATED for a checkpoint of which only headers are there */
export function checkComplete({ incomplete }: Pick<LoadedCheckpoint, "incomplete">): void {
  const [headers] = incomplete;
  if (headers === undefined) return;
  throw new CoppiceError(
    "COPPICE_FORMAT_TRUNCATED",
    `${headers} was opened for its header alone; its weights cannot be written`,
    { hint: "download the whole checkpoint", details: { files: incomplete.slice(0, 16) } },
  );
}
