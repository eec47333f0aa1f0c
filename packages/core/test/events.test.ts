import { RunEmitter, type Warning } from "@coppice/core";
import { expect, test } from "vitest";

const progress = { stage: "testing", done: 1, total: 2, unit: "tests" };

test("a listener that throws becomes one warning, and the others are still told", () => {
  const emitter = new RunEmitter();
  const told: string[] = [];
  const warnings: Warning[] = [];
  emitter.on("warn", (warning) => warnings.push(warning));
  emitter.on("progress", () => told.push("first"));
  emitter.on("progress", () => {
    throw new Error("broken listener");
  });
  emitter.on("progress", ({ done }) => told.push(`last ${done}`));
  emitter.notify("progress", progress);
  expect(told).toEqual(["first", "last 1"]);
  expect(warnings).toEqual([
    { code: "listener", message: 'a listener of "progress" threw: broken listener' },
  ]);
});

test("a listener may throw anything, even while it hears of a warning", () => {
  const emitter = new RunEmitter();
  const heard: string[] = [];
  emitter.on("warn", () => {
    throw "not an error";
  });
  emitter.on("warn", ({ message }) => heard.push(message));
  emitter.on("progress", () => {
    throw "text";
  });
  emitter.notify("progress", progress);
  emitter.notify("warn", { code: "x", message: "direct" });
  expect(heard).toEqual(['a listener of "progress" threw: text', "direct"]);
});

test("nobody needs to listen", () => {
  expect(() => new RunEmitter().notify("progress", progress)).not.toThrow();
});
