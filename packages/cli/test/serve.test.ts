import { join } from "node:path";
import { loadFixture } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere as coppice, coppiceJson, start } from "./cli.js";
import { copyModel, workshop } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const folder = join(work, "exported");
beforeAll(() => coppiceJson(["export", model, "--format", "onnx", "--out", folder]));

describe("generate from an exported folder", () => {
  it("writes what the checkpoint does", async () => {
    const { golden } = await loadFixture("mixtral");
    const ids = (golden.sequences[0] as Int32Array).join(",");
    const generated = await coppiceJson(["generate", folder, "--ids", ids, "--max-tokens", "16"]);
    expect(generated).toMatchObject({ tokens: [...golden.greedy], finish: "length" });
    const words = ["--prompt", "1 + 1 =", "--max-tokens", "12", "--temperature", "0.9", "--seed", "4"];
    const cuts = ["--top-k", "20", "--min-p", "0.01", "--repetition-penalty", "1.2"];
    const [here, there] = [
      await coppiceJson(["generate", folder, ...words, ...cuts]),
      await coppiceJson(["generate", model, ...words, ...cuts]),
    ];
    expect(here["tokens"]).toEqual(there["tokens"]);
    expect(here["tokens"]).not.toEqual((await coppiceJson(["generate", folder, ...words]))["tokens"]);
  });

  it.each([
    ["EXPORT", "--plan", "plan.json"],
    ["EXPORT", "--backend", "reference"],
    ["EXPORT", "--dtype", "q4"],
    ["MODEL", "--dtype", "fp32"],
  ])("refuses what it has not: %s %s", async (which, ...words) => {
    const path = which === "MODEL" ? model : folder;
    const { code, stderr } = await coppice(["generate", path, "--prompt", "a", ...words]);
    expect([code, stderr]).toEqual([2, expect.stringContaining("COPPICE_USAGE")]);
  });
});

describe("serve", () => {
  it("answers until it is interrupted, and sums up", async () => {
    const env = { COPPICE_API_KEY: "secret" };
    const { child, done } = start(["serve", folder, "--port", "0", "--name", "tiny", "--json"], { env });
    const url = await new Promise<string>((resolve) => {
      child.stderr?.on("data", (text: string) => {
        const found = /http:\S+\/v1/.exec(text)?.[0];
        if (found) resolve(found);
      });
    });
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:/);
    const ask = (key: string) =>
      fetch(`${url}/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
        body: JSON.stringify({ model: "tiny", prompt: "abc", max_tokens: 5, temperature: 0 }),
      });
    expect((await ask("wrong")).status).toBe(401);
    const answer = await (await ask("secret")).json();
    const { text } = await coppiceJson(["generate", folder, "--prompt", "abc", "--max-tokens", "5"]);
    expect(answer.choices[0].text).toBe(text);
    child.kill("SIGINT");
    const finished = await done;
    expect(finished.code).toBe(0);
    expect(finished.json()).toMatchObject({ requests: 2, failed: 1, promptTokens: 3, completionTokens: 5 });
    expect(finished.stderr).toMatch(/POST \/v1\/completions 200, .* 3 \+ 5 tokens/);
  });

  it("serves exported folders only", async () => {
    const { code, stderr } = await coppice(["serve", model]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/export .*--format onnx/);
    expect((await coppice(["serve", `${model}-nowhere`])).stderr).toMatch(
      /COPPICE_FORMAT_MISSING_FILE: there is no folder .*-nowhere\n$/,
    );
  });
});
