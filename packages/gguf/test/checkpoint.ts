import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
  parseSafetensors,
  serializeSafetensors,
} from "@coppice/checkpoint";
import { type GgufOptions, type GgufSummary, writeGguf } from "@coppice/gguf";
import { type FixtureName, fixturePath } from "@coppice/plugin-kit/node";
import { gguf } from "@huggingface/gguf";
import { onTestFinished } from "vitest";

/** The files of a model of plugin-kit, with a tokenizer, as they may be changed before they are loaded. */
export class Files {
  readonly files = new Map<string, Uint8Array>();

  json(name: string, edit: (value: Record<string, unknown>) => void): this {
    const value = JSON.parse(new TextDecoder().decode(this.files.get(name)));
    edit(value);
    return this.set(name, value);
  }

  set(name: string, value: unknown): this {
    this.files.set(name, new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value)));
    return this;
  }

  /** A model that has no head of its own. */
  async tied(): Promise<this> {
    const { tensors } = await parseSafetensors(
      this.files.get("model.safetensors") as Uint8Array,
      "model.safetensors",
    );
    this.files.set(
      "model.safetensors",
      serializeSafetensors(new Map([...tensors].filter(([name]) => name !== "lm_head.weight"))),
    );
    return this.json("config.json", (config) => (config["tie_word_embeddings"] = true));
  }

  async load(): Promise<LoadedCheckpoint> {
    const loaded = await loadModel(memoryFolder(this.files));
    onTestFinished(() => loaded.close());
    return loaded;
  }
}

export async function fixtureFiles(family: FixtureName): Promise<Files> {
  const files = new Files();
  for (const name of ["config.json", "generation_config.json", "model.safetensors"]) {
    files.files.set(name, new Uint8Array(await readFile(join(fixturePath(family), name))));
  }
  return files.set("tokenizer.json", tokenizer()).set("tokenizer_config.json", {
    bos_token: "<s>",
    eos_token: { content: "</s>" },
    pad_token: "<pad>",
    chat_template: "{{ messages[0].content }}",
  });
}

/** 253 of 256 tokens: three special ones, a word that is always one token, and the alphabet of bytes with two merges. */
function tokenizer() {
  const characters = Array.from({ length: 240 }, (_, i) =>
    String.fromCodePoint(0x21 + (i % 94) + 512 * Math.floor(i / 94)),
  );
  const words = ["<pad>", "<s>", "</s>", "constructor", ...characters, "ab", "abc"];
  const vocab = Object.fromEntries(words.map((word, id) => [word, id]));
  const special = (id: number) => ({ id, content: words[id], special: true });
  return {
    added_tokens: [
      special(0),
      special(1),
      special(2),
      { id: 250, content: "<|tool|>" },
      { id: 252, content: "[note]" },
    ],
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Digits", individual_digits: true },
        { type: "ByteLevel", add_prefix_space: false, use_regex: true },
      ],
    },
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    },
    model: { type: "BPE", vocab, merges: [["a", "b"], "ab c"], unk_token: null },
  };
}

export interface GgufFile {
  readonly summary: GgufSummary;
  readonly bytes: Uint8Array;
  readonly metadata: Readonly<Record<string, unknown>>;
  /** Name -> type, shape with the outermost axis first, and the bytes of its values. */
  readonly tensors: ReadonlyMap<string, { type: number; shape: number[]; data: Uint8Array }>;
}

/** Writes a file and reads its header back with `@huggingface/gguf`. */
export async function exportGguf(
  loaded: LoadedCheckpoint,
  options: Partial<GgufOptions> = {},
): Promise<GgufFile> {
  const target = memoryTarget();
  const summary = await writeGguf(loaded, target, { type: "F16", name: "tiny", ...options });
  const bytes = target.files.get(summary.file) as Uint8Array;
  const folder = await mkdtemp(join(tmpdir(), "coppice-gguf-"));
  const path = join(folder, summary.file);
  try {
    await writeFile(path, bytes);
    const { metadata, tensorInfos, tensorDataOffset } = await gguf(path, { allowLocalFile: true });
    const starts = tensorInfos.map(({ offset }) => Number(tensorDataOffset + offset));
    const tensors = new Map(
      tensorInfos.map(({ name, dtype, shape }, i) => {
        const data = bytes.subarray(starts[i], starts[i + 1] ?? bytes.length);
        return [name, { type: dtype as number, shape: shape.map(Number).reverse(), data }] as const;
      }),
    );
    return { summary, bytes, metadata: metadata as unknown as Record<string, unknown>, tensors };
  } finally {
    await rm(folder, { recursive: true });
  }
}
