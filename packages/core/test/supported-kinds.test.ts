import { checkSupported, type DecoderLayer, type MoeModel, type SupportedKinds } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const [layer] = model.layers as [DecoderLayer, ...DecoderLayer[]];
const kinds: SupportedKinds = {
  norm: ["rms"],
  attention: ["gqa"],
  rotaryScaling: ["linear"],
  feedForward: ["moe", "dense"],
  routerOrder: ["softmax-topk"],
  activation: ["silu"],
};
const check = (changed: object) => () =>
  checkSupported({ ...model, ...changed } as MoeModel, "sample", kinds);

describe("checkSupported", () => {
  test("takes a model of known kinds alone", () => {
    const scaling = { kind: "linear", factor: 2 };
    const attention = { ...layer.attention, rotary: { theta: 1, dimensions: 4, scaling } };
    expect(check({ layers: [{ ...layer, attention }, ...model.layers.slice(1)] })).not.toThrow();
  });

  test("refuses a model that is edited only, with the reason", () => {
    expect(check({ editOnly: "its token mixers are Mamba" })).toThrow(
      expect.objectContaining({
        code: "COPPICE_BACKEND_UNSUPPORTED",
        message: "models of the family tiny are not run, only edited: its token mixers are Mamba",
      }),
    );
  });

  const { feedForward } = layer;
  const gelu = { activation: { kind: "gelu" } };
  test.each([
    ["attention", "mla", { attention: { kind: "mla" } }],
    ["norm", "layer", { attentionNorm: { kind: "layer" } }],
    ["norm", "group", { feedForwardNorm: { kind: "group" } }],
    ["rotary scaling", "su", { attention: { kind: "gqa", rotary: { scaling: { kind: "su" } } } }],
    ["feed-forward", "other", { feedForward: { kind: "other" } }],
    ["router order", "sinkhorn", { feedForward: { ...feedForward, router: { order: "sinkhorn" } } }],
    ["activation", "gelu", { feedForward: { ...feedForward, experts: [gelu] } }],
    ["activation", "gelu", { feedForward: { ...feedForward, shared: gelu } }],
    ["activation", "gelu", { feedForward: { kind: "dense", mlp: gelu } }],
  ])("refuses an unknown kind of %s, %s", (what, kind, changed) => {
    expect(check({ layers: [{ ...layer, ...changed }] })).toThrow(
      expect.objectContaining({
        code: "COPPICE_BACKEND_UNSUPPORTED",
        message: expect.stringContaining(`layer 0 has ${what} "${kind}"; the sample backend runs "`),
      }),
    );
  });

  test("refuses an unknown final norm", () => {
    expect(check({ finalNorm: { kind: "layer" } })).toThrow(
      'the model has final norm "layer"; the sample backend runs "rms"',
    );
  });
});
