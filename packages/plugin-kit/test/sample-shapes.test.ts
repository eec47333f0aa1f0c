import type { MoeModel } from "@coppice/core";
import { type ModelFeature, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";

/** Parts of a description that may be absent; without one, the model computes something else. */
const optional = new Set([
  "bias",
  "queryNorm",
  "keyNorm",
  "normAfterRotary",
  "clip",
  "scaling",
  "longAttentionFactor",
  "sinks",
  "slidingWindow",
  "chunk",
  "temperature",
  "gateBias",
  "upBias",
  "downBias",
  "correction",
  "normalize",
  "least",
  "router.scale",
  "groups",
  "scalesInput",
  "jitter",
  "skip",
  "spare",
  "shared",
  "sharedGate",
  "embeddingScale",
  "residualScale",
  "logitScale",
  "headBias",
]);

type Json = { [key: string]: Json | undefined };

/** Paths of the optional parts, layers and experts taken together. */
function parts(value: Json, path: readonly string[] = []): string[] {
  return Object.entries(value).flatMap(([key, child]) => {
    const here = /^\d+$/.test(key) ? path : [...path, key];
    const isOptional = optional.has(key) || optional.has(here.slice(-2).join("."));
    const inner = typeof child === "object" && child && !("begin" in child) ? parts(child, here) : [];
    return isOptional ? [here.join("."), ...inner] : inner;
  });
}

function without(value: Json, [key, ...rest]: readonly string[]): void {
  if (Array.isArray(value)) for (const child of value) without(child, [key as string, ...rest]);
  else if (rest.length === 0) delete value[key as string];
  else if (typeof value[key as string] === "object") without(value[key as string] as Json, rest);
}

// A backend that forgot one of them would otherwise pass the conformance suite.
describe.each(Object.keys(sampleShapes) as ModelFeature[])("the sample model with %s", (feature) => {
  const whole = randomModel(sampleShapes[feature]);
  const ids = Array.from({ length: 11 }, (_, i) => (i * 7 + 3) % whole.model.vocabSize);
  const logits = slowForward(whole, ids).logits.flat();
  const difference = (model: MoeModel): number => {
    const other = slowForward({ ...whole, model }, ids).logits.flat();
    return Math.max(...other.map((value, i) => Math.abs(value - (logits[i] as number))));
  };
  const found = new Set(parts(whole.model as unknown as Json));

  test.skipIf(found.size === 0)("computes something else without any of its parts", () => {
    for (const part of found) {
      const model = structuredClone(whole.model) as unknown as Json;
      without(model, part.split("."));
      expect(difference(model as unknown as MoeModel), part).toBeGreaterThan(1e-3);
    }
  });

  test("computes something else when it rotates other pairs of dimensions", () => {
    const layers = whole.model.layers.map((layer) => {
      const { attention } = layer;
      if (attention.kind === "other" || !attention.rotary) return layer;
      const rotary = { ...attention.rotary, interleaved: !attention.rotary.interleaved };
      return { ...layer, attention: { ...attention, rotary } };
    });
    expect(difference({ ...whole.model, layers })).toBeGreaterThan(1e-3);
  });
});

test("the sample models have every optional part", () => {
  const seen = new Set(
    (Object.keys(sampleShapes) as ModelFeature[]).flatMap((feature) =>
      parts(randomModel(sampleShapes[feature]).model as unknown as Json).flatMap((path) => [
        path.split(".").at(-1),
        path.split(".").slice(-2).join("."),
      ]),
    ),
  );
  for (const part of optional) expect(seen, part).toContain(part);
});
