import {
  applyPlan,
  loadModel,
  memoryFolder,
  memoryTarget,
  rewriteCheckpoint,
  type TensorBytes,
} from "@coppice/checkpoint";
import { createPlan, dequantizeMatrix, type MlpSpec, moeLayers, Rng, type TensorRef } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { expectError, text } from "./helpers.js";
import { f32, fixture, loadMade, madeFiles, type Tensors } from "./made-checkpoint.js";

interface Pack {
  readonly bits: 2 | 4 | 8;
  /** Columns per scale; 0: one scale per row. */
  readonly group: number;
  readonly symmetric: boolean;
}

const isLinear = /(experts\.\d+|self_attn)\.\w+_proj\.weight$|lm_head\.weight$|embed_tokens\.weight$/;

/** Words of `count` integers each, the first in the lowest bits. */
function words(values: readonly number[], bits: number): TensorBytes["bytes"] {
  const per = 32 / bits;
  const packed = new Uint32Array(Math.ceil(values.length / per));
  for (const [i, value] of values.entries()) {
    packed[Math.floor(i / per)] = packed[Math.floor(i / per)]! + value * 2 ** (bits * (i % per));
  }
  return new Uint8Array(packed.buffer);
}

/** Replaces weights by random codes as compressed-tensors stores them, and gives what they stand for. */
function pack(tensors: Tensors, { bits, group, symmetric }: Pack): Map<string, number[]> {
  const rng = Rng.fromSeed(bits + group);
  const values = new Map<string, number[]>();
  for (const [name, { shape }] of [...tensors]) {
    if (!isLinear.test(name)) continue;
    const [rows, columns] = shape as [number, number];
    const groups = group === 0 ? 1 : columns / group;
    const random = (count: number) => Array.from({ length: count }, () => rng.integer(2 ** bits));
    const codes = random(rows * columns);
    const zeros = random(rows * groups);
    const scales = Float32Array.from({ length: rows * groups }, () => 0.01 + rng.uniform());
    const base = name.slice(0, -"weight".length);
    tensors.delete(name);
    tensors.set(`${base}weight_packed`, {
      dtype: "I32",
      shape: [rows, (columns * bits) / 32],
      bytes: words(codes, bits),
    });
    tensors.set(`${base}weight_scale`, f32([rows, groups], scales));
    tensors.set(`${base}weight_shape`, {
      dtype: "I64",
      shape: [2],
      bytes: new Uint8Array(BigInt64Array.of(BigInt(rows), BigInt(columns)).buffer),
    });
    if (!symmetric) {
      // Packed along the rows: column by column, then transposed.
      const high = Math.ceil((rows * bits) / 32);
      const packed = new Uint32Array(high * groups);
      for (let column = 0; column < groups; column++) {
        const own = Array.from({ length: rows }, (_, row) => zeros[row * groups + column]!);
        const column32 = new Uint32Array(words(own, bits).buffer);
        for (let i = 0; i < high; i++) packed[i * groups + column] = column32[i]!;
      }
      tensors.set(`${base}weight_zero_point`, {
        dtype: "I32",
        shape: [high, groups],
        bytes: new Uint8Array(packed.buffer),
      });
    }
    values.set(
      base,
      codes.map((code, i) => {
        const at = Math.floor(i / columns) * groups + Math.floor(((i % columns) * groups) / columns);
        return Math.fround((code - (symmetric ? 2 ** (bits - 1) : zeros[at]!)) * scales[at]!) + 0;
      }),
    );
  }
  return values;
}

const settings = ({ bits, group, symmetric }: Pack) => ({
  quantization_config: {
    quant_method: "compressed-tensors",
    format: "pack-quantized",
    config_groups: {
      group_0: {
        targets: ["Linear"],
        weights: {
          num_bits: bits,
          type: "int",
          symmetric,
          ...(group === 0 ? { strategy: "channel" } : { strategy: "group", group_size: group }),
        },
      },
    },
    ignore: ["re:.*mlp.gate$"],
  },
});

const plain = (values: Float32Array) => [...values].map((value) => value + 0);

describe("packed weights", () => {
  const packs: Pack[] = [
    { bits: 4, group: 16, symmetric: true },
    { bits: 4, group: 32, symmetric: false },
    { bits: 2, group: 16, symmetric: false },
    { bits: 8, group: 0, symmetric: true },
    { bits: 2, group: 0, symmetric: true },
  ];
  for (const form of packs) {
    it(`are read: ${JSON.stringify(form)}`, async () => {
      const { tensors, config } = await fixture("qwen3_moe");
      const values = pack(tensors, form);
      await using checkpoint = await loadMade({ ...config, ...settings(form) }, tensors);
      const { model, weights } = checkpoint;
      expect(model.editOnly).toBeUndefined();
      const [layer] = moeLayers(model);
      const { attention, feedForward } = layer!;
      const expert = feedForward.experts[3] as Required<MlpSpec>;
      const refs: TensorRef[] = [expert.gate, expert.up, expert.down, model.embedding, model.head];
      if (attention.kind === "gqa") refs.push(attention.key.weight, attention.output.weight);
      for (const ref of refs) {
        const expected = values.get(ref.name.slice(0, -"weight_packed".length))!;
        expect(plain(await weights.read(ref)), ref.name).toEqual(expected);
        const matrix = (await weights.readQuantized?.(ref))!;
        expect(plain(dequantizeMatrix(matrix)), ref.name).toEqual(expected);
        expect(matrix).toMatchObject({ bits: form.bits, groupSize: form.group || ref.shape[1] });
        expect(matrix.zeroPoints === undefined).toBe(form.symmetric);
      }
      expect(await weights.readQuantized?.(feedForward.router.weight)).toBeUndefined();
    });
  }

  const form: Pack = { bits: 4, group: 16, symmetric: true };

  it("of kept experts are moved as they are, with lists of modules renumbered", async () => {
    const { tensors, config } = await fixture("qwen3_moe");
    const values = pack(tensors, form);
    const { quantization_config } = settings(form);
    const module = "model.layers.0.mlp.experts";
    quantization_config.config_groups.group_0.targets = [`${module}.1.up_proj`, `${module}.6.up_proj`];
    await using checkpoint = await loadMade({ ...config, quantization_config }, tensors);
    const layers = moeLayers(checkpoint.model).map(({ index }) => ({ layer: index, experts: [2, 6] }));
    const target = memoryTarget();
    await applyPlan(checkpoint, createPlan(checkpoint.model, layers), target);
    await using pruned = await loadModel(memoryFolder(target.files));
    const { experts } = moeLayers(pruned.model)[0]!.feedForward;
    expect(plain(await pruned.weights.read(experts[1]!.up))).toEqual(values.get(`${module}.6.up_proj.`));
    expect(text(target.files.get("config.json"))).toContain(`["${module}.1.up_proj"]`);
    const merged = layers.map(({ layer }) => ({
      layer,
      experts: [0, 1],
      merge: [
        [0.5, 0, 0.5, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
      ],
    }));
    const merge = createPlan(checkpoint.model, merged);
    await expectError(applyPlan(checkpoint, merge, memoryTarget()), "COPPICE_PLAN_EXPORT", "is packed (I32)");
  });

  it("of other kinds are described and not decoded", async () => {
    const { tensors, config } = await fixture("qwen3_moe");
    pack(tensors, form);
    const changed = (change: (weights: Record<string, unknown>) => void) => {
      const own = structuredClone(settings(form));
      change(own.quantization_config.config_groups.group_0.weights);
      return { ...config, ...own };
    };
    const edits = [
      (weights: Record<string, unknown>) => Object.assign(weights, { num_bits: 3 }),
      (weights: Record<string, unknown>) => Object.assign(weights, { type: "float" }),
      (weights: Record<string, unknown>) => Object.assign(weights, { strategy: "tensor" }),
    ];
    for (const edit of edits) {
      await using checkpoint = await loadMade(changed(edit), tensors);
      expect(checkpoint.model.editOnly).toContain("packed integers");
    }
    const sorted = new Map(tensors).set("model.layers.0.self_attn.q_proj.weight_g_idx", f32([1], [0]));
    await using checkpoint = await loadMade({ ...config, ...settings(form) }, sorted);
    expect(checkpoint.model.editOnly).toContain("packed integers");
  });

  it("of the wrong shape are refused", async () => {
    const name = "model.layers.1.self_attn.q_proj.weight";
    const faults: [string, (tensors: Tensors, packed: TensorBytes) => void, ...string[]][] = [
      [
        "words",
        (tensors, packed) =>
          tensors.set(`${name}_packed`, { ...packed, shape: [packed.shape[0]! / 2, packed.shape[1]! * 2] }),
        "_packed has shape",
        "words of 2 or 4 or 8 bits",
      ],
      [
        "scales",
        (tensors) => tensors.set(`${name}_scale`, f32([64, 5], new Float32Array(320))),
        "5 scales per row",
      ],
      [
        "rows of scales",
        (tensors) => tensors.set(`${name}_scale`, f32([3, 4], new Float32Array(12))),
        "has shape [3, 4], expected [64, 4]",
      ],
    ];
    for (const [, damage, ...parts] of faults) {
      const { tensors, config } = await fixture("qwen3_moe");
      pack(tensors, form);
      damage(tensors, tensors.get(`${name}_packed`)!);
      await expectError(
        loadMade({ ...config, ...settings(form) }, tensors),
        "COPPICE_FORMAT_SHAPE",
        ...parts,
      );
    }
    const { tensors, config } = await fixture("qwen3_moe");
    pack(tensors, form);
    tensors.set(`${name}_scale`, f32([64, 4], new Float32Array(256).fill(Number.NaN)));
    await using checkpoint = await loadMade({ ...config, ...settings(form) }, tensors);
    const { attention } = checkpoint.model.layers[1]!;
    if (attention.kind !== "gqa") throw new Error(attention.kind);
    await expectError(checkpoint.weights.read(attention.query.weight), "COPPICE_FORMAT_NAN", `${name}_scale`);
  });
});

describe("rewriteCheckpoint", () => {
  it("copies, takes computed tensors in any order and changes the config", async () => {
    const { tensors, config } = await fixture("qwen3_moe");
    const files = madeFiles(config, tensors).set("tokenizer.json", new TextEncoder().encode("{}"));
    await using checkpoint = await loadModel(memoryFolder(files));
    const all = [...checkpoint.tensors.values()];
    const computed = all.filter(({ name }) => /q_proj|router|norm/.test(name));
    const target = memoryTarget();
    const summary = await rewriteCheckpoint(
      checkpoint,
      target,
      all.map((source) => ({ ...source, ...(computed.includes(source) ? {} : { source }) })),
      async (write) => {
        for (const { name } of computed.toReversed())
          await write(
            name,
            tensors.get(name)!.bytes.map((byte) => 255 - byte),
          );
      },
      {
        maxShardBytes: 60_000,
        config: { replace: new Map([["model_type", '"other"']]), insert: new Map([["note", "1"]]) },
      },
    );
    const written = JSON.parse(text(target.files.get("config.json"))) as object;
    expect(written).toEqual({ ...config, model_type: "other", note: 1 });
    expect(
      [...target.files]
        .map(([name, { length }]) => ({ name, bytes: length }))
        .sort((a, b) => (a.name < b.name ? -1 : 1)),
    ).toEqual(summary.files.toSorted((a, b) => (a.name < b.name ? -1 : 1)));
    expect(summary.files.length).toBeGreaterThan(4);
    expect(target.files.has("tokenizer.json")).toBe(true);
    const changed = new Map(target.files).set(
      "config.json",
      new TextEncoder().encode(JSON.stringify(config)),
    );
    await using output = await loadModel(memoryFolder(changed));
    for (const [name, { bytes, shape }] of tensors) {
      const ref = output.tensors.get(name)!;
      expect(ref.shape).toEqual(shape);
      const found = target.files.get(ref.file)!.subarray(ref.begin, ref.end);
      const isNew = computed.some((one) => one.name === name);
      const expected = isNew ? bytes.map((byte) => 255 - byte) : bytes;
      expect(Buffer.compare(found, expected), name).toBe(0);
    }
  });

  it("leaves nothing when a tensor is missing, has other bytes or cannot be computed", async () => {
    const { tensors, config } = await fixture("qwen3_moe");
    await using checkpoint = await loadMade(config, tensors);
    const outputs = [...checkpoint.tensors.values()].map(({ name, dtype, shape }) => ({
      name,
      dtype,
      shape,
    }));
    const target = memoryTarget();
    await expectError(
      rewriteCheckpoint(checkpoint, target, outputs, async () => {}),
      "COPPICE_INTERNAL",
      "never written",
    );
    const wrong = rewriteCheckpoint(checkpoint, target, outputs, (write) =>
      write("lm_head.weight", new Uint8Array(3)),
    );
    await expectError(wrong, "COPPICE_INTERNAL", "3 bytes were given for the tensor lm_head.weight");
    expect(target.files.size).toBe(0);
  });
});
