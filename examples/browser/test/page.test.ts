import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { openModelFolder } from "@coppice/runtime/node";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openNodeModels } from "../scripts/node-models.mjs";
import { chromiumPath, servePage, write, written, writtenTokens } from "../scripts/served-page.mjs";

const chromium = chromiumPath();
if (chromium === undefined && process.env["COPPICE_REQUIRE_BROWSER"] === "1") {
  throw new Error("no Chromium was found, and COPPICE_REQUIRE_BROWSER is 1");
}
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const folders = ["original", "pruned"] as const;
const phone = { viewport: { width: 375, height: 700 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

/** What axe, which the page has, complains of. */
function violationsOf(page: Page): Promise<string[]> {
  return page.evaluate(async () => {
    const { violations } = await (globalThis as unknown as { axe: typeof import("axe-core") }).axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  });
}

// Needs Chromium or Chrome, of COPPICE_CHROMIUM or the PATH; skipped where there is none.
describe.skipIf(chromium === undefined)("the page", () => {
  let scratch: string;
  let models: string;
  let served: Awaited<ReturnType<typeof servePage>>;
  let tab: Awaited<ReturnType<typeof served.tab>>;
  let page: Page;

  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), "coppice-browser-test-"));
    models = join(scratch, "models");
    const script = fileURLToPath(new URL("../scripts/make-models.mjs", import.meta.url));
    const quickly = ["--method", "rtn", "--set", "clip=false", "--out", models];
    await promisify(execFile)(process.execPath, [script, ...quickly]);
    served = await servePage(models, chromium as string);
    tab = await served.tab();
    page = tab.page;
    await page.goto(served.urls.isolated);
    await written(page);
  }, 600_000);
  afterAll(async () => {
    await served?.close();
    await rm(scratch, { recursive: true, force: true });
  });

  /** What Node writes on its CPU with the same folder, and the experts of every token. */
  async function inNode(folder: string, prompt: string, maxTokens = 48) {
    await using model = await openModelFolder(join(models, folder), { threads: 1 });
    const tokens: number[] = [];
    const experts: string[][] = [];
    for await (const piece of model.stream(prompt, { maxTokens, experts: true })) {
      if (piece.token === undefined) continue;
      tokens.push(piece.token);
      experts.push(piece.experts?.map(({ experts }) => experts.join()) ?? []);
    }
    return { tokens, experts, promptTokens: model.encode(prompt).length };
  }

  it("has threads, and writes token by token what Node writes", async () => {
    expect(await page.textContent("#how")).toMatch(/SIMD, (\d+ threads|one thread)\.$/);
    expect(await page.textContent("#engine-note")).toMatch(
      /^WebGPU has no adapter here\.$|^This browser has no WebGPU/,
    );
    expect(await page.isDisabled("[name=engine][value=webgpu]")).toBe(true);
    for (const prompt of ["Compute: 8 + 95 =", "Translate to German: Zambia\nAnswer:", "Once upon a time"]) {
      await write(page, prompt);
      const expected = await Promise.all(folders.map((folder) => inNode(folder, prompt)));
      expect(await writtenTokens(page)).toEqual(expected.map(({ tokens }) => tokens));
    }
    const figures = await page.$$eval(".speed, .first", (found) =>
      found.map(({ textContent }) => textContent),
    );
    expect(figures).toEqual([1, 2, 3, 4].map(() => expect.stringMatching(/^\d+/)));
  });

  it("shows the experts of each token, and how many chose them", async () => {
    const prompt = "Compute: 8 + 95 =";
    await page.fill("#tokens", "3");
    await write(page, prompt);
    const { experts, promptTokens } = await inNode("original", prompt, 3);
    // The table: two experts per token and layer.
    const rows = await page.$$eval(".panel:first-child tbody tr", (rows) =>
      rows.map((row) => [...row.querySelectorAll("td")].map(({ textContent }) => Number(textContent))),
    );
    expect(rows.map((row) => row.length)).toEqual([8, 8, 8, 8, 8, 8]);
    for (const row of rows)
      expect(Math.abs(row.reduce((sum, share) => sum + share, 0) - 200)).toBeLessThan(5);
    const removed = await page.$$eval(".panel:last-child td.removed", (cells) => cells.length);
    expect(removed).toBe(6 * 4);
    // The slider, at the last token that ran: the second that was written.
    const slider = page.locator(".panel:first-child input[type=range]");
    expect(await slider.getAttribute("max")).toBe(`${promptTokens + 1}`);
    const chosen = experts[2]?.map(
      (layer, i) =>
        `layer ${i + 1}: ${layer
          .split(",")
          .map((expert) => Number(expert) + 1)
          .join(" and ")}`,
    );
    expect(await slider.getAttribute("aria-valuetext")).toContain(chosen?.join(", "));
    await slider.focus();
    await page.keyboard.press("Home");
    await expect
      .poll(() => slider.getAttribute("aria-valuetext"))
      .toContain(`Token 1 of ${promptTokens + 2}`);
    await page.fill("#tokens", "48");
  });

  it("begins anew while it writes, when someone types on", async () => {
    await page.fill("#tokens", "400");
    await page.fill("#prompt", "Once upon a time");
    await page.waitForFunction(() => document.querySelectorAll(".panel:first-child .written").length > 3);
    await page.locator("#prompt").press("End");
    await page.keyboard.type(" there");
    const next = "Once upon a time there";
    await page.waitForFunction(
      (next) =>
        [...document.querySelectorAll(".panel:first-child .given")]
          .map((token) => token.textContent)
          .join("") === next,
      next,
    );
    await page.waitForFunction(() => document.querySelectorAll(".panel:first-child .written").length > 3);
    await page.keyboard.press("Escape");
    await written(page);
    const finishes = await page.$$eval(".text", (texts) =>
      texts.map((text) => text.getAttribute("data-finish")),
    );
    expect(finishes).toEqual(["stopped", "stopped"]);
    for (const [i, tokens] of (await writtenTokens(page)).entries()) {
      expect(tokens.length).toBeLessThan(400);
      const expected = await inNode(folders[i] as string, next, tokens.length);
      expect(tokens).toEqual(expected.tokens);
    }
    await page.fill("#tokens", "48");
  });

  it("needs no mouse", async () => {
    await page.uncheck("#live");
    await page.locator("#prompt").focus();
    await page.keyboard.press("ControlOrMeta+A");
    await page.keyboard.type("Compute: 18 - 2 =");
    await page.keyboard.press("Control+Enter");
    await expect.poll(() => page.textContent("#texts"), { timeout: 60_000 }).toContain(": 16");
    // All that can be used is reached, in the order of the page.
    await page.locator("#prompt").focus();
    const reached: (string | null)[] = [];
    for (let i = 0; i < 15; i++) {
      await page.keyboard.press("Tab");
      reached.push(
        await page.evaluate(() => {
          const { activeElement: at } = document;
          return at && (at.id || at.getAttribute("aria-label") || at.getAttribute("type") || at.textContent);
        }),
      );
    }
    for (const name of ["live", "tokens", "write", "Text of Original", "range"])
      expect(reached).toContain(name);
    await page.locator("#examples button").first().press("Enter");
    await expect.poll(() => page.inputValue("#prompt")).toBe("Compute: 8 + 95 =");
    await page.check("#live");
    await written(page);
  });

  it("goes on without a network", async () => {
    await tab.context.setOffline(true);
    await write(page, "Compute: 20 + 4 =");
    expect(await page.textContent(".panel:first-child .text")).toContain("24");
    await tab.context.setOffline(false);
  });

  it.each([
    ["on a desk", {}],
    ["on a phone, dark", { ...phone, colorScheme: "dark" }],
  ] as const)(
    "passes axe %s",
    async (_, {
      colorScheme = "light",
      viewport,
    }: { colorScheme?: "light" | "dark"; viewport?: typeof phone.viewport }) => {
      await page.emulateMedia({ colorScheme });
      if (viewport) await page.setViewportSize(viewport);
      await page.addScriptTag({ path: axe });
      expect(await violationsOf(page)).toEqual([]);
      const { scrollWidth, clientWidth } = await page.evaluate(() => {
        const { scrollWidth, clientWidth } = document.documentElement;
        return { scrollWidth, clientWidth };
      });
      expect(scrollWidth).toBeLessThanOrEqual(clientWidth);
    },
  );

  it("complained of nothing, and asked no other server", () => {
    expect(tab.complaints).toEqual([]);
  });

  it("says when there are no threads, and writes all the same", async () => {
    const { page, context, complaints } = await served.tab(phone);
    await page.goto(served.urls.plain);
    await written(page);
    expect(await page.textContent("#how")).toContain(
      "one thread. More need a server that sends Cross-Origin-Opener-Policy",
    );
    expect(await page.textContent("#texts")).toContain("103");
    expect(complaints).toEqual([]);
    await context.close();
  });

  it.each([
    ["models.json", "**/models.json", "npm run models"],
    ["a graph", "**/*.onnx", "npm run models"],
    ["the worker", "**/model-worker*", "all files of the page"],
  ])("says what to do when %s is missing, and loads again", async (_, url, advice) => {
    const { page, context } = await served.tab();
    await page.route(url, (route) => route.fulfill({ status: 404, body: "" }));
    await page.goto(served.urls.isolated);
    await page.waitForSelector("#problem:visible");
    expect(await page.textContent("#problem")).toContain(advice);
    await page.unroute(url);
    await page.click("#retry");
    await page.waitForSelector("#progress:visible");
    await context.close();
  });

  it("says when there is no WebAssembly", async () => {
    const { page, context } = await served.tab();
    await page.addInitScript(() => Reflect.deleteProperty(globalThis, "WebAssembly"));
    await page.goto(served.urls.isolated);
    await page.waitForSelector("#problem:visible");
    expect(await page.textContent("#problem")).toContain("no WebAssembly");
    await context.close();
  });

  describe("on WebGPU in software", () => {
    let tab: Awaited<ReturnType<typeof served.tab>>;
    beforeAll(async () => {
      tab = await served.tab({ webgpu: true });
      // Kernels are compiled first, which takes a busy processor its time.
      tab.page.setDefaultTimeout(300_000);
      await tab.page.goto(served.urls.isolated);
      await written(tab.page);
    }, 300_000);
    afterAll(() => tab.context.close());

    it("begins with WebAssembly, and writes token by token what Node's cpu backend writes", async () => {
      const { page, complaints } = tab;
      expect(await page.textContent("#how")).toContain("WebAssembly");
      await page.uncheck("#live");
      await page.fill("#prompt", "Once upon a time");
      await page.fill("#tokens", "12");
      await page.check("[name=engine][value=webgpu]");
      await page.waitForFunction(() => document.querySelector(".written") === null);
      await written(page);
      expect(await page.textContent("#how")).toContain("WebGPU");
      const inNode = await openNodeModels(models);
      expect(await writtenTokens(page)).toEqual(await inNode.write("Once upon a time", 12));
      await page.check("#live");
      await page.fill("#tokens", "6");
      await write(page, "Compute: 18 - 2 =");
      expect(await writtenTokens(page)).toEqual(await inNode.write("Compute: 18 - 2 =", 6));
      await inNode.dispose();
      const sizes = await page.$$eval(".size", (all) => all.map(({ textContent }) => textContent));
      expect(sizes).toEqual([
        expect.stringMatching(/^\d+\.\d MB, 8 experts/),
        expect.stringMatching(/^The same weights under a plan, 4 of 8 experts/),
      ]);
      const figures = await page.$$eval(".speed", (found) => found.map(({ textContent }) => textContent));
      for (const figure of figures) expect(Number(figure)).toBeGreaterThan(0);
      const shares = await page.$$eval(".panel:first-child tbody tr:first-child td", (cells) =>
        cells.reduce((sum, { textContent }) => sum + Number(textContent), 0),
      );
      expect(Math.abs(shares - 200)).toBeLessThan(5);
      await page.addScriptTag({ path: axe });
      expect(await violationsOf(page)).toEqual([]);
      expect(complaints).toEqual([]);
    }, 600_000);

    it("says which kernel a device computes wrong, and goes on with WebAssembly", async () => {
      const { page } = tab;
      await page.route("**/webgpu-models*.js", async (route) => {
        const response = await route.fetch();
        const body = await response.text();
        await route.fulfill({
          response,
          body: body.replace("y[i] += p.factor * x[i];", "y[i] += x[i];"),
        });
      });
      await page.reload();
      await written(page);
      await page.check("[name=engine][value=webgpu]");
      await expect
        .poll(() => page.textContent("#engine-note"), { timeout: 300_000 })
        .toMatch(/^WebGPU was refused: .*kernel "elementwise"/);
      expect(await page.isChecked("[name=engine][value=wasm]")).toBe(true);
      await written(page);
      expect(await page.textContent("#how")).toContain("WebAssembly");
    }, 600_000);
  });
});
