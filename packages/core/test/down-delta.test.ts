import { addDelta, downDelta, packBfloat16 } from "@coppice/core";
import { expect, test } from "vitest";

test("downDelta gives every slot its own part, and nothing for slots without changes", () => {
  const values = Float32Array.of(1, 2, 3, 4, 5, 0, -0, 0, 0, 0, 0, 0, 0, 0, -7);
  const plan = { experts: [4, 2, 0], down: packBfloat16(values) };
  expect(downDelta(plan, 0)).toEqual(values.subarray(0, 5));
  expect(downDelta(plan, 1)).toBeUndefined();
  expect(downDelta(plan, 2)).toEqual(values.subarray(10));
  expect(downDelta({ experts: [4, 2, 0] }, 0)).toBeUndefined();
});

test("addDelta rounds each sum to float32", () => {
  const values = Float32Array.of(1, 0.1, -0);
  addDelta(values, Float32Array.of(2 ** -24, 0.5, 0));
  expect([...values]).toEqual([1, Math.fround(Math.fround(0.1) + 0.5), 0]);
  expect(() => addDelta(values, new Float32Array(2))).toThrow(/2 deltas for 3 values/);
});
