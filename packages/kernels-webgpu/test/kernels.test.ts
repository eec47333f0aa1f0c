import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hasChromium, openWebgpuPage } from "../../../tools/webgpu-page.mjs";
import { kernelCases, packedCases, productCases } from "./kernel-cases.js";

// Needs Chromium, whose software adapter has subgroups of 4 threads; skipped where there is none.
describe.skipIf(!hasChromium)("kernels on a software adapter give what formulas in float64 give", () => {
  let page: Awaited<ReturnType<typeof openWebgpuPage>>;
  beforeAll(async () => {
    page = await openWebgpuPage(fileURLToPath(new URL("page.ts", import.meta.url)));
  }, 300_000);
  afterAll(() => page?.close());

  const cases = [
    ...kernelCases.map(({ kernel, key }) => [kernel, `parallel ${key}`] as const),
    ...packedCases.map(({ kernel, key }) => [kernel, `unpacked ${key}`] as const),
    ...productCases.map(({ kernel, key }) => [kernel, `serial ${key}`] as const),
  ];
  it.each(cases)("%s: %s", (_, name) => page.run(name), 300_000);
});

it("names no case twice", () => {
  expect(new Set(kernelCases.map(({ key }) => key)).size).toBe(kernelCases.length);
});
