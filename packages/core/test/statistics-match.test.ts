import { checkCollected, type LayerStatistics, type Statistics } from "@coppice/core";
import { describe, expect, it } from "vitest";

function statistics(layer: Partial<LayerStatistics>): Statistics {
  return { model: "m", tokens: 1, layers: [layer as LayerStatistics] };
}

describe("checkCollected", () => {
  const needs = { extras: ["everyOutputSum", "peak"], sample: ["logits", "units"] } as const;
  const sums = Float64Array.of(1);
  const floats = Float32Array.of(1);

  it("accepts statistics that have more than is needed", () => {
    const whole = statistics({
      everyOutputSum: sums,
      peak: sums,
      change: sums,
      sample: { logits: floats, units: floats, inputs: floats },
    });
    expect(checkCollected(whole, needs, "some-merger")).toBeUndefined();
    expect(checkCollected(statistics({}), {}, "some-merger")).toBeUndefined();
  });

  it("says what is missing and which flags collect all that is needed", () => {
    const check = () =>
      checkCollected(statistics({ peak: sums, sample: { logits: floats } as never }), needs, "some-merger");
    expect(check).toThrow(
      /^some-merger needs everyOutputSum and a sample of tokens with units, which these statistics do not have/,
    );
    try {
      check();
    } catch (error) {
      expect(error).toMatchObject({
        code: "COPPICE_STATS_MISSING",
        hint: "collect them with `coppice calibrate --with everyOutputSum,peak --sample logits,units`",
        details: { extras: ["everyOutputSum"], sample: ["units"] },
      });
    }
  });
});
