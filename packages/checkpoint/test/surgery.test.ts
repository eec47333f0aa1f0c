import type { TensorBytes } from "@coppice/checkpoint";
import { type MlpSpec, roundToStored, type TensorRef } from "@coppice/core";
import { describe, expect, it } from "vitest";
import type { ExpertTensors, MergeRule, SeparateTensor } from "../src/families/expert-tensors.js";
import { expectError } from "./helpers.js";
import { floats, type HandLayer, handMade, normal, random, take } from "./surgery-source.js";

const E = 5;
const router: HandLayer["router"] = { order: "softmax-topk", normalize: { power: 1 } };
const layer = (index: number, more: Partial<HandLayer> = {}): HandLayer => ({
  layer: index,
  router,
  routerWeight: `l${index}.gate`,
  experts: E,
  ...more,
});

const separate = (
  refs: ReadonlyMap<string, TensorRef>,
  pattern: string,
  merge: MergeRule,
  partner?: string,
): SeparateTensor[] =>
  Array.from({ length: E }, (_, expert) => {
    const at = (text: string) => refs.get(text.replace("{e}", String(expert))) as TensorRef;
    return { tensor: at(pattern), expert, pattern, merge, ...(partner && { partner: at(partner) }) };
  }).filter(({ tensor }) => tensor !== undefined);

const set = (
  index: number,
  refs: ReadonlyMap<string, TensorRef>,
  more: Partial<ExpertTensors>,
  label = `layer ${index}`,
): ExpertTensors => ({
  layer: index,
  label,
  experts: E,
  rows: [{ tensor: refs.get(`l${index}.gate`) as TensorRef, axis: 0, role: "weight" }],
  separate: [],
  stacked: [],
  ...more,
});

const each = (pattern: string, make: () => TensorBytes): [string, TensorBytes][] =>
  Array.from({ length: E }, (_, expert) => [pattern.replace("{e}", String(expert)), make()]);

describe("separate tensors", () => {
  const packed = ["qweight", "qzeros", "scales", "g_idx"] as const;
  const gptq = () =>
    handMade(
      new Map([
        ["embed", random("BF16", [3, 4])],
        ["l0.gate", normal("BF16", [E, 4])],
        ...each("l0.experts.{e}.up.qweight", () => random("I32", [2, 6])),
        ...each("l0.experts.{e}.up.qzeros", () => random("I32", [1, 2])),
        ...each("l0.experts.{e}.up.scales", () => random("F16", [1, 6])),
        ...each("l0.experts.{e}.up.g_idx", () => random("I32", [16])),
        ["norm", random("F32", [4])],
      ]),
      [layer(0)],
      (refs) => [
        set(0, refs, {
          separate: packed.flatMap((end) => separate(refs, `l0.experts.{e}.up.${end}`, "opaque")),
        }),
      ],
    );

  it("move packs with all their parts without decoding them", async () => {
    const { apply, tensors } = await gptq();
    const { tensors: written } = await apply([{ layer: 0, experts: [4, 0, 2] }]);
    expect([...written.keys()].sort()).toEqual(
      [
        "embed",
        "norm",
        "l0.gate",
        ...[0, 1, 2].flatMap((e) => packed.map((end) => `l0.experts.${e}.up.${end}`)),
      ].sort(),
    );
    for (const [slot, expert] of [4, 0, 2].entries()) {
      for (const end of packed) {
        expect(written.get(`l0.experts.${slot}.up.${end}`)).toEqual(
          tensors.get(`l0.experts.${expert}.up.${end}`),
        );
      }
    }
    expect(written.get("l0.gate")).toEqual(take(tensors.get("l0.gate")!, 0, [4, 0, 2]));
    for (const name of ["embed", "norm"]) expect(written.get(name)).toEqual(tensors.get(name));
  });

  it("refuse to merge packs, but let one stand for another", async () => {
    const { apply, tensors } = await gptq();
    const merge = [
      [0, 0, 0.5, 0, 0.5],
      [1, 0, 0, 0, 0],
    ];
    await expectError(
      apply([{ layer: 0, experts: [4, 0], merge }]),
      "COPPICE_PLAN_EXPORT",
      "layer 0 cannot be merged: l0.experts.4.up.qweight is packed (I32)",
    );
    const { tensors: written } = await apply([
      { layer: 0, experts: [4, 0], merge: [[0, 1, 0, 0, 0], merge[1]!] },
    ]);
    expect(written.get("l0.experts.0.up.qzeros")).toEqual(tensors.get("l0.experts.1.up.qzeros"));
    expect(written.get("l0.gate")).toEqual(take(tensors.get("l0.gate")!, 0, [4, 0]));
  });

  it("refuse siblings of other shapes, and merges of other dtypes, before anything is written", async () => {
    const make = (odd: TensorBytes) =>
      handMade(
        new Map([
          ["l0.gate", normal("BF16", [E, 4])],
          ...each("l0.experts.{e}.w", () => normal("BF16", [2, 4])),
          ["l0.experts.3.w", odd],
        ]),
        [layer(0)],
        (refs) => [set(0, refs, { separate: separate(refs, "l0.experts.{e}.w", "plain") })],
      );
    const shaped = await make(normal("BF16", [4, 2]));
    await expectError(
      shaped.apply([{ layer: 0, experts: [0, 1] }]),
      "COPPICE_FORMAT_SHAPE",
      "l0.experts.3.w of layer 0 has shape [4, 2], expected [2, 4] as l0.experts.0.w",
    );
    const typed = await make(normal("F32", [2, 4]));
    await typed.apply([{ layer: 0, experts: [0, 3] }]);
    const half = [0.5, 0, 0, 0.5, 0];
    await expectError(
      typed.apply([{ layer: 0, experts: [0, 1], merge: [half, half] }]),
      "COPPICE_PLAN_EXPORT",
      "l0.experts.3.w is F32",
    );
  });

  it("let multi-token-prediction layers follow the plan, merges included", async () => {
    const names = ["l0", "mtp"];
    const { apply, tensors } = await handMade(
      new Map(
        names.flatMap((name) => [
          [`${name}.gate`, normal("BF16", [E, 4])] as const,
          ...each(`${name}.experts.{e}.w`, () => normal("BF16", [2, 4])),
        ]),
      ),
      [layer(0)],
      (refs) =>
        names.map((name) =>
          set(
            0,
            refs,
            {
              rows: [{ tensor: refs.get(`${name}.gate`)!, axis: 0, role: "weight" }],
              separate: separate(refs, `${name}.experts.{e}.w`, "plain"),
            },
            name,
          ),
        ),
    );
    const merge = [
      [0.5, 0, 0, 0, 2],
      [0, 1, 0, 0, 0],
    ];
    const { tensors: written } = await apply([{ layer: 0, experts: [4, 1], merge }]);
    expect(written.size).toBe(6);
    for (const name of names) {
      const of = (expert: number) => floats(tensors.get(`${name}.experts.${expert}.w`)!);
      const [a, b] = [of(0), of(4)];
      const merged = floats(written.get(`${name}.experts.0.w`)!);
      for (let i = 0; i < merged.length; i++) {
        const exact = 0.5 * a[i]! + 2 * b[i]!;
        expect(Math.abs(merged[i]! - exact)).toBeLessThanOrEqual(Math.abs(exact) * 2 ** -8);
      }
      expect(written.get(`${name}.experts.1.w`)).toEqual(tensors.get(`${name}.experts.1.w`));
      expect(written.get(`${name}.gate`)).toEqual(take(tensors.get(`${name}.gate`)!, 0, [4, 1]));
    }
  });
});

describe("stacked tensors and router rows", () => {
  it("are cut by byte ranges along axis 0, routers along theirs", async () => {
    const columns: TensorBytes = normal("F32", [7, E]);
    const { apply, tensors } = await handMade(
      new Map([
        ["l0.gate", normal("BF16", [E, 4])],
        ["turned", columns],
        ["correction", normal("F32", [1, E])],
        ["gate_up", random("BF16", [E, 6, 4])],
        ["bias", random("BF16", [E, 6])],
        ["flat", random("F32", [E * 3, 4])],
        ["codes", random("U8", [E, 2, 2, 16])],
      ]),
      [layer(0)],
      (refs) => [
        set(0, refs, {
          rows: [
            { tensor: refs.get("l0.gate")!, axis: 0, role: "weight" },
            { tensor: refs.get("turned")!, axis: 1, role: "weight" },
            { tensor: refs.get("correction")!, axis: 1, role: "correction" },
          ],
          stacked: [
            { tensor: refs.get("gate_up")!, rowsPerExpert: 1, merge: "plain" },
            { tensor: refs.get("bias")!, rowsPerExpert: 1, merge: "plain" },
            { tensor: refs.get("flat")!, rowsPerExpert: 3, merge: "plain" },
            { tensor: refs.get("codes")!, rowsPerExpert: 1, merge: "opaque" },
          ],
        }),
      ],
    );
    const kept = [3, 4, 0];
    const { tensors: written } = await apply([{ layer: 0, experts: kept }]);
    for (const name of ["l0.gate", "gate_up", "bias", "codes"]) {
      expect(written.get(name)).toEqual(take(tensors.get(name)!, 0, kept));
    }
    for (const name of ["turned", "correction"]) {
      expect(written.get(name)).toEqual(take(tensors.get(name)!, 1, kept));
    }
    const rows = kept.flatMap((expert) => [3 * expert, 3 * expert + 1, 3 * expert + 2]);
    expect(written.get("flat")).toEqual(take(tensors.get("flat")!, 0, rows));
    await expectError(
      apply([{ layer: 0, experts: kept, merge: kept.map(() => [1, 1, 0, 0, 0]) }]),
      "COPPICE_PLAN_EXPORT",
      "codes is packed (U8)",
    );
  });

  it("are refused when their sizes are not those of the experts", async () => {
    for (const [name, part] of [
      ["rows", "l0.gate of layer 0 has shape [6, 4], expected 5 experts along axis 0"],
      ["stack", "stack of layer 0 has shape [6, 2], expected 5 along axis 0"],
    ] as const) {
      const { apply } = await handMade(
        new Map([
          ["l0.gate", normal("BF16", [name === "rows" ? E + 1 : E, 4])],
          ["stack", normal("BF16", [name === "stack" ? E + 1 : E, 2])],
        ]),
        [layer(0)],
        (refs) => [
          set(0, refs, { stacked: [{ tensor: refs.get("stack")!, rowsPerExpert: 1, merge: "plain" }] }),
        ],
      );
      await expectError(apply([{ layer: 0, experts: [0, 1] }]), "COPPICE_FORMAT_SHAPE", part);
    }
  });
});

/** Values of all 256 codes of F8_E4M3, by the definition. */
const float8 = Array.from({ length: 256 }, (_, code) => {
  const [exponent, fraction] = [(code >> 3) % 16, (code % 8) / 8];
  const magnitude = exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7);
  return (code & 127) === 127 ? Number.NaN : code >= 128 ? -magnitude : magnitude;
});
const float4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

/** The code of the nearest value, by trying all; of two equally near ones the even. */
function nearest(codes: readonly number[], value: number): number {
  let best = 0;
  for (let code = 0; code < codes.length; code++) {
    const sign = Object.is(codes[code], -0) || codes[code]! < 0;
    if (Number.isNaN(codes[code]) || sign !== (value < 0 || Object.is(value, -0))) continue;
    const [now, before] = [Math.abs(codes[code]! - value), Math.abs(codes[best]! - value)];
    const bestSign = Object.is(codes[best], -0) || codes[best]! < 0;
    if (bestSign !== sign || now < before || (now === before && code % 2 === 0)) best = code;
  }
  return best;
}

const row = [0, 0.75, 0, -0.5, 0.375];
const mixed = (values: readonly (readonly number[])[], i: number) =>
  Math.fround(0.75 * values[1]![i]! + -0.5 * values[3]![i]! + 0.375 * values[4]![i]!);

describe("merged quantized experts", () => {
  for (const [label, R, C, rows, columns, scaleShape] of [
    ["blocks with cut edges", 10, 20, 4, 8, [3, 3]],
    ["a scale per row", 6, 9, 1, 9, [6, 1]],
    ["one scale", 6, 9, 6, 9, [1]],
  ] as [string, number, number, number, number, number[]][]) {
    for (const dtype of ["F32", "BF16"] as const) {
      it(`are quantized anew in F8_E4M3 with ${dtype} scales, ${label}`, async () => {
        const tensors = new Map([
          ["l0.gate", normal("BF16", [E, 4])],
          ...each("l0.experts.{e}.w", () => random("F8_E4M3", [R, C])),
          ...each("l0.experts.{e}.w_scale", () => {
            const tensor = normal(dtype, scaleShape, 0.1);
            return {
              ...tensor,
              bytes: tensor.bytes.map((byte, i) =>
                i % (dtype === "F32" ? 4 : 2) === (dtype === "F32" ? 3 : 1) ? byte & 127 : byte,
              ),
            };
          }),
        ]);
        const matrix = (refs: ReadonlyMap<string, TensorRef>, expert: number): TensorRef => ({
          ...refs.get(`l0.experts.${expert}.w`)!,
          scales: {
            format: "scaled",
            stored: [R, C],
            rows,
            columns,
            scales: refs.get(`l0.experts.${expert}.w_scale`)!,
          },
        });
        const mlp = (refs: ReadonlyMap<string, TensorRef>, expert: number) => ({ up: matrix(refs, expert) });
        const { apply, loaded } = await handMade(tensors, [layer(0, { mlp })], (refs) => [
          set(0, refs, {
            separate: [
              ...separate(refs, "l0.experts.{e}.w", "codes", "l0.experts.{e}.w_scale"),
              ...separate(refs, "l0.experts.{e}.w_scale", "scales", "l0.experts.{e}.w"),
            ],
          }),
        ]);
        const {
          tensors: written,
          predicted,
          summary,
        } = await apply([{ layer: 0, experts: [1, 2], merge: [row, [0, 0, 1, 0, 0]] }]);
        expect(predicted).toEqual(summary);
        for (const end of ["w", "w_scale"]) {
          expect(written.get(`l0.experts.1.${end}`)).toEqual(tensors.get(`l0.experts.2.${end}`));
        }
        // Independently: look values up, merge, find the largest of each block and the nearest code.
        const across = Math.ceil(C / columns);
        const block = (i: number) => Math.floor(i / C / rows) * across + Math.floor((i % C) / columns);
        const values = Array.from({ length: E }, (_, expert) => {
          const scales = floats(tensors.get(`l0.experts.${expert}.w_scale`)!);
          const codes = tensors.get(`l0.experts.${expert}.w`)!.bytes;
          return Array.from(codes, (code, i) => Math.fround(float8[code]! * scales[block(i)]!));
        });
        const merged = values[0]!.map((_, i) => mixed(values, i));
        const scales = floats(written.get("l0.experts.0.w_scale")!);
        const largest = Array.from(scales, (_, b) =>
          Math.max(...merged.map((value, i) => (block(i) === b ? Math.abs(value) : 0))),
        );
        for (const [b, scale] of scales.entries()) {
          const tolerance = dtype === "F32" ? 2 ** -24 : 2 ** -8;
          expect(Math.abs(scale - largest[b]! / 448)).toBeLessThanOrEqual((largest[b]! / 448) * tolerance);
        }
        const codes = merged.map((value, i) =>
          nearest(float8, Math.fround(Math.max(-448, Math.min(448, value / scales[block(i)]!)))),
        );
        expect([...written.get("l0.experts.0.w")!.bytes]).toEqual(codes);
        // What is written is what an evaluation of the plan computes.
        const rounded = Float32Array.from(merged);
        roundToStored(
          rounded,
          (loaded.model.layers[0]!.feedForward as unknown as { experts: MlpSpec[] }).experts[1]!.up,
        );
        expect(codes.map((code, i) => Math.fround(float8[code]! * scales[block(i)]!))).toEqual([...rounded]);
      });
    }
  }

  it("are quantized anew in stacked MXFP4", async () => {
    const [R, C] = [6, 64];
    const tensors = new Map<string, TensorBytes>([
      ["l0.gate", normal("BF16", [E, 4])],
      ["blocks", random("U8", [E, R, 2, 16])],
      ["scales", random("U8", [E, R, 2])],
    ]);
    const exponents = tensors.get("scales")!.bytes;
    for (let i = 0; i < exponents.length; i++) exponents[i] = 118 + (i % 5);
    const { apply, loaded } = await handMade(tensors, [layer(0)], (refs) => [
      set(0, refs, {
        stacked: [
          { tensor: refs.get("blocks")!, rowsPerExpert: 1, merge: "codes", partner: refs.get("scales")! },
          { tensor: refs.get("scales")!, rowsPerExpert: 1, merge: "scales", partner: refs.get("blocks")! },
        ],
      }),
    ]);
    const { tensors: written } = await apply([{ layer: 0, experts: [4, 2], merge: [row, [0, 0, 1, 0, 0]] }]);
    for (const name of ["blocks", "scales"]) {
      expect(take(written.get(name)!, 0, [1])).toEqual(take(tensors.get(name)!, 0, [2]));
    }
    const values = Array.from({ length: E }, (_, expert) => {
      const bytes = take(tensors.get("blocks")!, 0, [expert]).bytes;
      const powers = take(tensors.get("scales")!, 0, [expert]).bytes;
      return Array.from({ length: R * C }, (_, i) => {
        const pair = bytes[i >> 1]!;
        return float4[i % 2 ? pair >> 4 : pair & 15]! * 2 ** (powers[i >> 5]! - 127);
      });
    });
    const merged = values[0]!.map((_, i) => mixed(values, i));
    const powers = Array.from({ length: (R * C) / 32 }, (_, b) => {
      const largest = Math.max(...merged.slice(32 * b, 32 * b + 32).map(Math.abs));
      return Math.floor(Math.log2(largest)) - 2 + 127;
    });
    expect([...take(written.get("scales")!, 0, [0]).bytes]).toEqual(powers);
    const codes = merged.map((value, i) =>
      nearest(float4, Math.max(-6, Math.min(6, value / 2 ** (powers[i >> 5]! - 127)))),
    );
    const bytes = Array.from({ length: (R * C) / 2 }, (_, i) => codes[2 * i]! | (codes[2 * i + 1]! << 4));
    expect([...take(written.get("blocks")!, 0, [0]).bytes]).toEqual(bytes);
    // Read again by the package's own reader, rows in twos as GPT-OSS has gate and up.
    const whole = loaded.tensors.get("blocks")!;
    const share = (name: string): TensorRef => {
      const ref = loaded.tensors.get(name)!;
      return { ...ref, shape: ref.shape.slice(1), end: ref.begin + (ref.end - ref.begin) / E };
    };
    const rounded = Float32Array.from(merged.filter((_, i) => Math.floor(i / C) % 2 === 1));
    roundToStored(rounded, {
      ...whole,
      shape: [R / 2, C],
      view: { offset: C, strides: [2 * C, 1] },
      scales: { format: "mxfp4", stored: [R, C], rows: 1, columns: 32, scales: share("scales") },
    });
    const written2 = merged
      .map((_, i) => float4[codes[i]!]! * 2 ** (powers[i >> 5]! - 127))
      .filter((_, i) => Math.floor(i / C) % 2 === 1);
    expect([...rounded]).toEqual(written2);
  });

  it("are refused where core has no such rounding", async () => {
    const { apply } = await handMade(
      new Map([
        ["l0.gate", normal("BF16", [E, 4])],
        ...each("l0.experts.{e}.w", () => random("F8_E5M2", [4, 4])),
        ...each("l0.experts.{e}.s", () => normal("F32", [1])),
      ]),
      [layer(0)],
      (refs) => [
        set(0, refs, {
          separate: [
            ...separate(refs, "l0.experts.{e}.w", "codes", "l0.experts.{e}.s"),
            ...separate(refs, "l0.experts.{e}.s", "scales", "l0.experts.{e}.w"),
          ],
        }),
      ],
    );
    await apply([{ layer: 0, experts: [1, 2] }]);
    await expectError(
      apply([{ layer: 0, experts: [1, 2], merge: [row, row] }]),
      "COPPICE_FORMAT_DTYPE",
      "l0.experts.1.w",
    );
  });
});
