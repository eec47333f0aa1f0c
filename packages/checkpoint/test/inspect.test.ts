import { inspectModel, loadModel, memoryFolder } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { describe, expect, it } from "vitest";
import { expectError, type Files, fixtures, load, tinyFiles } from "./helpers.js";

/** The files with every weight file cut off after its header. */
function headersOf(files: Files): Files {
  return new Map(
    [...files].map(([name, bytes]) => {
      if (!name.endsWith(".safetensors")) return [name, bytes];
      const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
      return [name, bytes.slice(0, 8 + length)];
    }),
  );
}

describe("inspectModel", () => {
  it("says how each family routes, shares and may have layers of different sizes", async () => {
    const said: Record<string, { routing: string; shared?: string; unequalLayers: RegExp }> = {
      mixtral: {
        routing: "softmax over 8 experts, then the top 2, divided by their sum",
        unequalLayers: /no bias/,
      },
      qwen2_moe: {
        routing: "softmax over 8 experts, then the top 2, not divided by their sum",
        shared: "width 64, gate, up and down, silu, multiplied by the sigmoid of its gate",
        unequalLayers: /no bias/,
      },
      deepseek_v3: {
        routing:
          "sigmoid of 8 logits, then the top 2, chosen by score plus correction, from the 2 of 4 groups with the largest sum of two scores, divided by their sum, times 2.5",
        shared: "width 32, gate, up and down, silu",
        unequalLayers: /^exact$/,
      },
      deepseek_v2: {
        routing:
          "softmax over 8 experts, then the top 2, from the 2 of 4 groups with the largest score, not divided by their sum, times 1.5",
        shared: "width 64, gate, up and down, silu",
        unequalLayers: /no bias/,
      },
      gpt_oss: {
        routing: "the top 2 of 8 logits, then softmax over those, router with bias",
        unequalLayers: /^exact$/,
      },
      ernie4_5_moe: {
        routing:
          "softmax over 8 experts, then the top 2, chosen by score plus correction, divided by their sum, at least 1e-12",
        shared: "width 32, gate, up and down, silu",
        unequalLayers: /softmax over all experts/,
      },
      llama4_text: {
        routing: "the top 1 of 8 logits, then sigmoid of each, gate weights multiply the input of experts",
        shared: "width 32, gate, up and down, silu",
        unequalLayers: /no bias/,
      },
      phimoe: {
        routing: "sparsemixer: 2 of 8 experts one after the other, each weighted among those near it",
        unequalLayers: /no bias/,
      },
    };
    for (const [family, { routing, shared, unequalLayers }] of Object.entries(said)) {
      await using checkpoint = await loadModel(await openFolder(`${fixtures}${family}`));
      const inspection = await inspectModel(checkpoint);
      expect(inspection).toMatchObject({ family, routing, mtpLayers: 0, headersOnly: [] });
      expect(inspection.shared).toBe(shared);
      expect(inspection.unequalLayers).toMatch(unequalLayers);
      expect(inspection.fingerprint).toBe(checkpoint.model.fingerprint);
    }
  });

  it("counts what one expert less saves by what surgery takes away", async () => {
    for (const family of ["mixtral", "gpt_oss", "granitemoe"]) {
      await using checkpoint = await loadModel(await openFolder(`${fixtures}${family}`));
      const { perExpert } = await inspectModel(checkpoint);
      // Three layers of F32: gate, up and down of 32 x 64, one router row of 64; GPT-OSS has biases too.
      const biases = family === "gpt_oss" ? 3 * 4 * (2 * 32 + 64 + 1) : 0;
      expect(perExpert.bytes).toBe(3 * 4 * (3 * 32 * 64 + 64) + biases);
    }
  });

  it("reads a folder that has only config, index and headers", async () => {
    const files = await tinyFiles({ maxShardBytes: 1000 });
    const headers = headersOf(files);
    await expectError(load(headers), "COPPICE_FORMAT_TRUNCATED", "model-00001-of-");
    await using whole = await load(files);
    await using checkpoint = await loadModel(memoryFolder(headers), { headersOnly: true });
    const shards = [...files.keys()].filter((name) => name.endsWith(".safetensors"));
    expect([...checkpoint.incomplete]).toEqual(shards.sort());
    const { fingerprint, shards: cut, headersOnly, ...said } = await inspectModel(checkpoint);
    expect(cut.map((shard) => shard.name)).toEqual(shards);
    expect(fingerprint).toBeUndefined();
    expect(headersOnly).toEqual(shards);
    expect(await inspectModel(whole)).toMatchObject(said);
    // A folder that has everything keeps its fingerprint.
    await using complete = await loadModel(memoryFolder(files), { headersOnly: true });
    expect((await inspectModel(complete)).fingerprint).toBe(whole.model.fingerprint);
  });

  it("says which weight file is missing, or has not even its header", async () => {
    const headers = headersOf(await tinyFiles({ maxShardBytes: 1000 }));
    const name = [...headers.keys()].find((file) => file.startsWith("model-00003-of-")) as string;
    const open = (files: Files) => loadModel(memoryFolder(files), { headersOnly: true });
    const cut = new Map(headers).set(name, (headers.get(name) as Uint8Array).slice(0, 60));
    await expectError(open(cut), "COPPICE_FORMAT_HEADER", name);
    const empty = new Map(headers).set(name, new Uint8Array(3));
    await expectError(open(empty), "COPPICE_FORMAT_TRUNCATED", name);
    const gone = new Map(headers);
    gone.delete(name);
    await expectError(open(gone), "COPPICE_FORMAT_MISSING_FILE", name);
  });

  it("still refuses bytes that belong to no tensor", async () => {
    const files = await tinyFiles();
    const bytes = files.get("model.safetensors") as Uint8Array;
    const longer = new Uint8Array(bytes.length + 1);
    longer.set(bytes);
    await expectError(
      loadModel(memoryFolder(new Map(files).set("model.safetensors", longer)), { headersOnly: true }),
      "COPPICE_FORMAT_OFFSETS",
      "belong to no tensor",
    );
  });
});
