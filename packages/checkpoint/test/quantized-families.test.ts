import type { LoadedCheckpoint, TensorBytes } from "@coppice/checkpoint";
import { type MlpSpec, moeLayers, Rng } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { expectError } from "./helpers.js";
import { f32, fixture, loadMade, randomTensor, type Tensors } from "./made-checkpoint.js";

const experts = ({ model }: LoadedCheckpoint, layer = 0) => moeLayers(model)[layer]!.feedForward.experts;

/** Float8 E4M3 by its definition, without the code under test. */
function e4m3(byte: number): number {
  const [sign, exponent, mantissa] = [byte >> 7, (byte >> 3) & 15, byte & 7];
  const value = exponent === 0 ? (mantissa / 8) * 2 ** -6 : (1 + mantissa / 8) * 2 ** (exponent - 7);
  return sign ? -value : value;
}

const fp4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

const fp8Config = { quantization_config: { quant_method: "fp8", weight_block_size: [16, 24] } };
const isExpert = /experts\.\d+\..*weight$/;

/** Replaces the weights whose names match by random fp8 codes with scales of this shape. */
function toFp8(
  tensors: Tensors,
  which: RegExp,
  scales: (rows: number, columns: number) => { name: string; shape: number[] },
): Tensors {
  const rng = Rng.fromSeed(3);
  for (const [name, { shape }] of [...tensors]) {
    if (!which.test(name)) continue;
    const [rows, columns] = shape as [number, number];
    tensors.set(name, randomTensor(rng, shape, "F8_E4M3"));
    const made = scales(rows, columns);
    const count = made.shape.reduce((product, size) => product * size, 1);
    const values = Float32Array.from({ length: count }, () => 2 ** -(4 + rng.integer(4)));
    tensors.set(`${name}${made.name}`, f32(made.shape, values));
  }
  return tensors;
}

const blockScales = (rows: number, columns: number) => ({
  name: "_scale_inv",
  shape: [Math.ceil(rows / 16), Math.ceil(columns / 24)],
});

describe("fp8 checkpoints", () => {
  it("are executed: every weight is its codes times the scales of their blocks", async () => {
    const { tensors, config } = await fixture("deepseek_v3");
    toFp8(tensors, /(experts\.\d+|self_attn|shared_experts)\..*proj\w*\.weight$/, blockScales);
    await using checkpoint = await loadMade({ ...config, ...fp8Config }, tensors);
    expect(checkpoint.model.editOnly).toBeUndefined();
    const { gate } = experts(checkpoint)[3] as Required<MlpSpec>;
    const codes = tensors.get("model.layers.1.mlp.experts.3.gate_proj.weight") as TensorBytes;
    const scales = new Float32Array(
      (tensors.get("model.layers.1.mlp.experts.3.gate_proj.weight_scale_inv") as TensorBytes).bytes.slice()
        .buffer,
    );
    const expected = Array.from(codes.bytes, (byte, i) => {
      const [row, column] = [Math.floor(i / 64), i % 64];
      return e4m3(byte) * (scales[Math.floor(row / 16) * 3 + Math.floor(column / 24)] as number);
    });
    expect([...(await checkpoint.weights.read(gate))]).toEqual(expected);
    const { attention } = checkpoint.model.layers[0]!;
    expect(attention).toMatchObject({ kvUp: { weight: { scales: { rows: 16, columns: 24 } } } });
  });

  it("may have one scale for each row, or one for all", async () => {
    for (const [shape, rows] of [
      [(r: number) => [r, 1], 1],
      [(r: number) => [r], 1],
      [() => [1], 32],
      [() => [], 32],
    ] as const) {
      const { tensors, config } = await fixture("qwen3_moe");
      toFp8(tensors, isExpert, (r) => ({ name: "_scale", shape: [...shape(r)] }));
      const quantization_config = { quant_method: "compressed-tensors", config_groups: {} };
      await using checkpoint = await loadMade({ ...config, quantization_config }, tensors);
      const { gate } = experts(checkpoint)[0] as Required<MlpSpec>;
      expect(gate.scales).toMatchObject({ rows, columns: 64 });
      expect(await checkpoint.weights.read(gate)).toHaveLength(32 * 64);
    }
  });

  it("tell surgery which codes and scales belong together", async () => {
    const { tensors, config } = await fixture("minimax_m2");
    toFp8(tensors, isExpert, blockScales);
    await using checkpoint = await loadMade({ ...config, ...fp8Config }, tensors);
    const { separate } = checkpoint.edits[0]!;
    expect(separate).toHaveLength(8 * 3 * 2);
    const base = "model.layers.0.block_sparse_moe.experts.5.w1.weight";
    const codes = separate.find(({ tensor }) => tensor.name === base);
    expect(codes).toMatchObject({ expert: 5, merge: "codes", partner: { name: `${base}_scale_inv` } });
    expect(codes?.pattern).toBe("model.layers.0.block_sparse_moe.experts.{e}.w1.weight");
    const scales = separate.find(({ tensor }) => tensor.name === `${base}_scale_inv`);
    expect(scales).toMatchObject({ expert: 5, merge: "scales", partner: { name: base } });
  });

  it("may be fused: the halves of a stack share no block, or are read through it", async () => {
    for (const block of [16, 24]) {
      const { tensors, config } = await fixture("qwen3_moe");
      const rng = Rng.fromSeed(5);
      for (const [name] of [...tensors]) if (isExpert.test(name)) tensors.delete(name);
      for (let layer = 0; layer < 3; layer++) {
        const base = `model.layers.${layer}.mlp.experts`;
        tensors.set(`${base}.gate_up_proj`, randomTensor(rng, [8, 64, 64], "F8_E4M3"));
        tensors.set(
          `${base}.gate_up_proj_scale_inv`,
          randomTensor(rng, [8, Math.ceil(64 / block), Math.ceil(64 / block)]),
        );
        tensors.set(`${base}.down_proj`, randomTensor(rng, [8, 64, 32], "F8_E4M3"));
        tensors.set(
          `${base}.down_proj_scale_inv`,
          randomTensor(rng, [8, Math.ceil(64 / block), Math.ceil(32 / block)]),
        );
      }
      const quantization_config = { quant_method: "fp8", weight_block_size: [block, block] };
      await using checkpoint = await loadMade({ ...config, quantization_config }, tensors);
      const { up } = experts(checkpoint, 2)[6] as Required<MlpSpec>;
      // Rows 32 to 63 begin with a block of 16 rows, and within one of 24.
      expect(up.view === undefined).toBe(block === 16);
      const name = "model.layers.2.mlp.experts.gate_up_proj";
      const codes = (tensors.get(name) as TensorBytes).bytes;
      const scales = new Float32Array((tensors.get(`${name}_scale_inv`) as TensorBytes).bytes.slice().buffer);
      const across = Math.ceil(64 / block);
      const expected = Array.from({ length: 32 * 64 }, (_, i) => {
        const [row, column] = [32 + Math.floor(i / 64), i % 64];
        const scale = scales[
          (6 * across + Math.floor(row / block)) * across + Math.floor(column / block)
        ] as number;
        return Math.fround(e4m3(codes[(6 * 64 + row) * 64 + column] as number) * scale);
      });
      expect([...(await checkpoint.weights.read(up))]).toEqual(expected);
      expect(checkpoint.edits[0]!.stacked.map(({ merge }) => merge)).toEqual([
        "codes",
        "scales",
        "codes",
        "scales",
      ]);
    }
  });

  const faults: [string, (tensors: Tensors) => void, Parameters<typeof expectError>[1], ...string[]][] = [
    [
      "a scale that is missing",
      (tensors) => tensors.delete("model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"),
      "COPPICE_FORMAT_QUANTIZED",
      "model.layers.1.mlp.experts.2.up_proj",
      "weight_scale_inv",
    ],
    [
      "scales that are all missing",
      (tensors) => {
        for (const name of [...tensors.keys()]) if (name.endsWith("scale_inv")) tensors.delete(name);
      },
      "COPPICE_FORMAT_QUANTIZED",
      "experts.0.down_proj.weight has no",
    ],
    [
      "scales of another shape",
      (tensors) =>
        tensors.set(
          "model.layers.1.mlp.experts.0.up_proj.weight_scale_inv",
          f32([3, 3], new Float32Array(9)),
        ),
      "COPPICE_FORMAT_SHAPE",
      "[3,3]",
      "[2, 3] for blocks of 16 x 24",
    ],
    [
      "a scale without its weight",
      (tensors) => {
        for (let expert = 0; expert < 8; expert++) {
          const base = `model.layers.0.mlp.experts.${expert}.up_proj.weight`;
          tensors.set(`${base}_zero_point`, f32([1], [0]));
        }
      },
      "COPPICE_FORMAT_QUANTIZED",
      "weight_zero_point has no",
    ],
    [
      "a sibling of no known kind",
      (tensors) => tensors.set("model.layers.0.mlp.experts.0.up_proj.codebook", f32([1], [0])),
      "COPPICE_FORMAT_QUANTIZED",
      "up_proj.codebook is of no known kind",
    ],
    [
      "experts in different dtypes",
      (tensors) => {
        const name = "model.layers.0.mlp.experts.7.down_proj.weight";
        tensors.set(name, f32([64, 32], new Float32Array(64 * 32)));
      },
      "COPPICE_FORMAT_DTYPE",
      "experts.0.down_proj.weight in F8_E4M3",
      "experts.7.down_proj.weight in F32",
    ],
  ];
  for (const [what, damage, code, ...parts] of faults) {
    it(`refuses ${what}`, async () => {
      const { tensors, config } = await fixture("qwen3_moe");
      toFp8(tensors, isExpert, blockScales);
      damage(tensors);
      await expectError(loadMade({ ...config, ...fp8Config }, tensors), code, ...parts);
    });
  }
});

describe("GPT-OSS in MXFP4", () => {
  /** The published form: blocks [experts, outputs, inputs / 32, 16], gate in even rows, up in odd ones. */
  async function published() {
    const { tensors, config } = await fixture("gpt_oss");
    const rng = Rng.fromSeed(9);
    for (let layer = 0; layer < 3; layer++) {
      const base = `model.layers.${layer}.mlp.experts`;
      for (const [name, rows, columns] of [
        ["gate_up_proj", 64, 64],
        ["down_proj", 64, 32],
      ] as const) {
        tensors.delete(`${base}.${name}`);
        const blocks = Uint8Array.from({ length: (8 * rows * columns) / 2 }, () => rng.integer(256));
        const scales = Uint8Array.from({ length: (8 * rows * columns) / 32 }, () => 120 + rng.integer(8));
        tensors.set(`${base}.${name}_blocks`, {
          dtype: "U8",
          shape: [8, rows, columns / 32, 16],
          bytes: blocks,
        });
        tensors.set(`${base}.${name}_scales`, { dtype: "U8", shape: [8, rows, columns / 32], bytes: scales });
      }
    }
    return { tensors, config: { ...config, quantization_config: { quant_method: "mxfp4" } } };
  }

  const valueAt = (tensors: Tensors, name: string, expert: number, rows: number, columns: number) => {
    const { bytes: blocks } = tensors.get(`${name}_blocks`) as TensorBytes;
    const { bytes: scales } = tensors.get(`${name}_scales`) as TensorBytes;
    return (row: number, column: number) => {
      const at = (expert * rows + row) * columns + column;
      const byte = blocks[at >> 1] as number;
      return (fp4[at % 2 === 0 ? byte & 15 : byte >> 4] as number) * 2 ** ((scales[at >> 5] as number) - 127);
    };
  };

  it("reads gate, up and down of every expert", async () => {
    const { tensors, config } = await published();
    await using checkpoint = await loadMade(config, tensors);
    const { gate, up, down } = experts(checkpoint, 1)[4] as Required<MlpSpec>;
    const both = valueAt(tensors, "model.layers.1.mlp.experts.gate_up_proj", 4, 64, 64);
    const each = (of: (row: number, column: number) => number, rows: number, columns: number) =>
      Array.from({ length: rows * columns }, (_, i) => of(Math.floor(i / columns), i % columns));
    expect([...(await checkpoint.weights.read(gate))]).toEqual(each((r, c) => both(2 * r, c), 32, 64));
    expect([...(await checkpoint.weights.read(up))]).toEqual(each((r, c) => both(2 * r + 1, c), 32, 64));
    const own = valueAt(tensors, "model.layers.1.mlp.experts.down_proj", 4, 64, 32);
    expect([...(await checkpoint.weights.read(down))]).toEqual(each(own, 64, 32));
    const merges = checkpoint.edits[0]!.stacked.map(({ tensor, merge }) => [
      tensor.name.split(".").at(-1),
      merge,
    ]);
    expect(merges.sort()).toEqual([
      ["down_proj_bias", "plain"],
      ["down_proj_blocks", "codes"],
      ["down_proj_scales", "scales"],
      ["gate_up_proj_bias", "plain"],
      ["gate_up_proj_blocks", "codes"],
      ["gate_up_proj_scales", "scales"],
    ]);
  });

  it("refuses blocks without scales, and scales of another shape", async () => {
    const { tensors, config } = await published();
    const name = "model.layers.2.mlp.experts.down_proj_scales";
    const scales = tensors.get(name) as TensorBytes;
    tensors.delete(name);
    await expectError(loadMade(config, tensors), "COPPICE_FORMAT_QUANTIZED", "down_proj_blocks has no", name);
    tensors.set(name, { ...scales, shape: [8, 32, 2] });
    await expectError(loadMade(config, tensors), "COPPICE_FORMAT_SHAPE", "[8, 32, 2]", "[8, 64, 1]");
  });
});

describe("packed integers", () => {
  const pack = (tensors: Tensors, method: "gptq" | "compressed-tensors") => {
    for (const [name, { shape }] of [...tensors]) {
      if (!/(experts\.\d+|self_attn)\.\w+_proj\.weight$/.test(name)) continue;
      tensors.delete(name);
      const base = name.slice(0, -"weight".length);
      const [rows, columns] = shape as [number, number];
      const integers = (size: number[]): TensorBytes => ({
        dtype: "I32",
        shape: size,
        bytes: new Uint8Array(4 * size.reduce((product, one) => product * one, 1)),
      });
      if (method === "gptq") {
        tensors.set(`${base}qweight`, integers([columns / 8, rows]));
        tensors.set(`${base}qzeros`, integers([1, rows / 8]));
        tensors.set(`${base}scales`, f32([1, rows], new Float32Array(rows)));
        tensors.set(`${base}g_idx`, integers([columns]));
      } else {
        tensors.set(`${base}weight_packed`, integers([rows, columns / 8]));
        tensors.set(`${base}weight_scale`, f32([rows, 1], new Float32Array(rows)));
        tensors.set(`${base}weight_shape`, integers([2]));
      }
    }
    return tensors;
  };

  for (const method of ["gptq", "compressed-tensors"] as const) {
    it(`of ${method} are described, moved and never run`, async () => {
      const { tensors, config } = await fixture("qwen3_moe");
      pack(tensors, method);
      const quantization_config = { quant_method: method, bits: 4 };
      await using checkpoint = await loadMade({ ...config, quantization_config }, tensors);
      expect(checkpoint.model.editOnly).toContain(method);
      const { separate, rows } = checkpoint.edits[0]!;
      expect(separate).toHaveLength(8 * 3 * (method === "gptq" ? 4 : 3));
      expect(new Set(separate.map(({ merge }) => merge))).toEqual(new Set(["opaque"]));
      expect(rows.map(({ role }) => role)).toEqual(["weight"]);
      const undescribed = checkpoint.model.undescribed?.map(({ name }) => name) ?? [];
      expect(undescribed).toContain(
        `model.layers.0.self_attn.q_proj.${method === "gptq" ? "qweight" : "weight_packed"}`,
      );
      expect(moeLayers(checkpoint.model)[0]!.feedForward.experts).toHaveLength(8);
    });
  }

  it("of int8 with scales are moved; integers without any are refused", async () => {
    const { tensors, config } = await fixture("mixtral");
    const integers = (rows: number, columns: number): TensorBytes => ({
      dtype: "I8",
      shape: [rows, columns],
      bytes: new Uint8Array(rows * columns),
    });
    const name = "model.layers.1.self_attn.q_proj.weight";
    await expectError(
      loadMade(config, new Map(tensors).set(name, integers(64, 64))),
      "COPPICE_FORMAT_DTYPE",
      name,
      "I8",
    );
    for (const [weight, { shape }] of [...tensors]) {
      if (!isExpert.test(weight)) continue;
      tensors.set(weight, integers(shape[0] as number, shape[1] as number));
      tensors.set(`${weight}_scale`, f32([shape[0] as number, 1], new Float32Array(shape[0] as number)));
    }
    await using checkpoint = await loadMade(config, tensors);
    expect(checkpoint.model.editOnly).toContain("packed integers");
    expect(checkpoint.edits[0]!.separate.every(({ merge }) => merge === "opaque")).toBe(true);
  });

  it("of which one sibling is missing are refused", async () => {
    for (const [layer, expert] of [
      [0, 0],
      [2, 5],
    ]) {
      const { tensors, config } = await fixture("qwen3_moe");
      pack(tensors, "gptq");
      tensors.delete(`model.layers.${layer}.mlp.experts.${expert}.up_proj.qzeros`);
      await expectError(
        loadMade({ ...config, quantization_config: { quant_method: "gptq" } }, tensors),
        "COPPICE_FORMAT_QUANTIZED",
        `model.layers.${layer}.mlp.experts.${expert}.up_proj`,
        "qzeros",
      );
    }
  });
});
