import { checkWholeNumber } from "@coppice/core";
import { expect, test } from "vitest";

test("checkWholeNumber gives back what is one, and names the option otherwise", () => {
  expect(checkWholeNumber("batch", 1)).toBe(1);
  expect(checkWholeNumber("workers", 1024, 1024)).toBe(1024);
  for (const value of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    expect(() => checkWholeNumber("batch", value)).toThrow(
      expect.objectContaining({
        code: "COPPICE_USAGE",
        message: `batch is ${value}, expected a whole number of at least 1`,
      }),
    );
  }
  expect(() => checkWholeNumber("workers", 1025, 1024)).toThrow(
    "workers is 1025, expected a whole number of 1 to 1024",
  );
});
