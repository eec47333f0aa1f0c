import { rotaryFrequencies } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { ConfigReader } from "../src/config.js";
import { type RotaryContext, readRotary } from "../src/families/rotary-settings.js";
import { expectError } from "./helpers.js";

const context: RotaryContext = {
  title: "A family",
  theta: 10_000,
  contextLength: 4096,
  headDim: 8,
  interleaved: false,
};

const read = (config: object, changes: Partial<RotaryContext> = {}) =>
  readRotary(new ConfigReader({ ...config }, "config.json"), { ...context, ...changes });
const scaling = (config: object, changes: Partial<RotaryContext> = {}) =>
  read(config, changes).rotary.scaling;

describe("readRotary", () => {
  it("takes the older rope_scaling before rope_parameters, and the type under either key", () => {
    const newer = { rope_type: "linear", factor: 2, rope_theta: 5 };
    expect(scaling({ rope_parameters: newer })).toEqual({ kind: "linear", factor: 2 });
    expect(scaling({ rope_parameters: newer, rope_scaling: { type: "linear", factor: 3 } })).toEqual({
      kind: "linear",
      factor: 3,
    });
    // An empty one counts as none.
    expect(scaling({ rope_parameters: newer, rope_scaling: {} })).toEqual({ kind: "linear", factor: 2 });
    expect(read({ rope_parameters: newer, rope_theta: 7 }).rotary.theta).toBe(5);
    expect(read({ rope_scaling: { type: "default" }, rope_theta: 7 }).rotary.theta).toBe(7);
    expect(read({}).rotary).toEqual({ theta: 10_000, dimensions: 8, interleaved: false });
  });

  it("takes original_max_position_embeddings from the top level, then from the parameters, then the context", () => {
    const original = (config: object) => {
      const found = scaling(config);
      return found && "originalContext" in found ? found.originalContext : undefined;
    };
    const yarn = { rope_type: "yarn", factor: 4 };
    expect(original({ rope_parameters: yarn })).toBe(4096);
    expect(original({ rope_parameters: { ...yarn, original_max_position_embeddings: 512 } })).toBe(512);
    const both = { rope_parameters: { ...yarn, original_max_position_embeddings: 512 } };
    expect(original({ ...both, original_max_position_embeddings: 256 })).toBe(256);
    // Dynamic scaling starts at the context of the config, whatever else it says.
    const dynamic = { rope_type: "dynamic", factor: 2, original_max_position_embeddings: 512 };
    expect(original({ rope_parameters: dynamic })).toBe(4096);
  });

  it("reads YaRN with DeepSeek's magnitudes", () => {
    const yarn = { type: "yarn", factor: 40, original_max_position_embeddings: 4096 };
    expect(scaling({ rope_scaling: yarn })).toEqual({
      kind: "yarn",
      factor: 40,
      originalContext: 4096,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 0.1 * Math.log(40) + 1,
      truncate: true,
    });
    const v3 = { ...yarn, mscale: 1, mscale_all_dim: 1, beta_fast: 16, truncate: false };
    expect(scaling({ rope_scaling: v3 })).toMatchObject({
      attentionFactor: 1,
      betaFast: 16,
      truncate: false,
    });
    expect(read({ rope_scaling: v3 }).softmaxFactor).toBeCloseTo((0.1 * Math.log(40) + 1) ** 2, 12);
    const v2 = { ...yarn, mscale: 0.7, mscale_all_dim: 0.7 };
    expect(read({ rope_scaling: v2 }).softmaxFactor).toBeCloseTo((0.07 * Math.log(40) + 1) ** 2, 12);
    expect(scaling({ rope_scaling: { ...yarn, attention_factor: 1.5 } })).toMatchObject({
      attentionFactor: 1.5,
    });
    expect(scaling({ rope_scaling: { ...yarn, factor: 1 } })).toMatchObject({ attentionFactor: 1 });
    expect(read({ rope_scaling: yarn }).softmaxFactor).toBe(1);
  });

  it("reads longrope, whose factor follows from the contexts", () => {
    const lists = { short_factor: [1, 1, 1, 1], long_factor: [1, 2, 3, 4] };
    const rope = { rope_type: "longrope", ...lists, original_max_position_embeddings: 1024 };
    expect(scaling({ rope_parameters: rope })).toEqual({
      kind: "longrope",
      shortFactors: [1, 1, 1, 1],
      longFactors: [1, 2, 3, 4],
      originalContext: 1024,
      attentionFactor: Math.sqrt(1 + Math.log(4) / Math.log(1024)),
    });
    const stated = { ...rope, short_mscale: 1.1, long_mscale: 1.3 };
    const phi = scaling({ rope_parameters: stated }, { statedMagnitudes: true });
    expect(phi).toMatchObject({ attentionFactor: 1.1, longAttentionFactor: 1.3, longFactors: [1, 1, 1, 1] });
  });

  it("reads llama3, and HunYuan's dynamic scaling by alpha as a longer base", () => {
    const llama3 = {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 1024,
    };
    expect(scaling({ rope_parameters: llama3 })).toEqual({
      kind: "llama3",
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 1024,
    });
    const { rotary } = read({ rope_scaling: { type: "dynamic", alpha: 1000, factor: 1 } });
    expect(rotary.scaling).toBeUndefined();
    expect(rotary.theta).toBeCloseTo(10_000 * 1000 ** (8 / 6), 6);
    expect(rotaryFrequencies(rotary, 10_000).factor).toBe(1);
  });

  it("rotates part of each head only in families that allow it", async () => {
    expect(read({}, { partial: 0.5 }).rotary.dimensions).toBe(4);
    expect(read({ partial_rotary_factor: 0.25 }, { partial: 0.5 }).rotary.dimensions).toBe(2);
    const rope = { rope_type: "default", partial_rotary_factor: 1 };
    expect(
      read({ partial_rotary_factor: 0.25, rope_parameters: rope }, { partial: 0.5 }).rotary.dimensions,
    ).toBe(8);
    expect(read({ rotary_dim: 4 }, { partial: 1 }).rotary.dimensions).toBe(4);
    await expectError(() => read({ partial_rotary_factor: 0.5 }), "COPPICE_FAMILY_UNSUPPORTED", "0.5");
    await expectError(() => read({}, { partial: 0.4 }), "COPPICE_FORMAT_CONFIG", "even number");
  });

  it("falls back to the family's own parameters", () => {
    const fallback = { rope_type: "linear", factor: 32 };
    expect(scaling({}, { fallback })).toEqual({ kind: "linear", factor: 32 });
    expect(scaling({ rope_parameters: { rope_type: "default" } }, { fallback })).toBeUndefined();
  });
});
