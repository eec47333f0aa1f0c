import { type Progress, RunEmitter, startProgress } from "@coppice/core";
import { afterEach, expect, test, vi } from "vitest";

afterEach(() => void vi.useRealTimers());

test("tells what is done and the time that the rest takes at the same pace", () => {
  vi.useFakeTimers({ toFake: ["performance"] });
  const emitter = new RunEmitter();
  const told: Progress[] = [];
  emitter.on("progress", (progress) => told.push(progress));
  const tell = startProgress(emitter, "measuring", "layers");
  const common = { stage: "measuring", unit: "layers", total: 8 };
  tell(0, 8);
  expect(told.at(-1)).toEqual({ ...common, done: 0 });
  vi.advanceTimersByTime(300);
  tell(2, 8);
  expect(told.at(-1)).toEqual({ ...common, done: 2, etaMs: 900 });
  vi.advanceTimersByTime(500);
  tell(8, 8);
  expect(told.at(-1)).toEqual({ ...common, done: 8, etaMs: 0 });
  // Without an emitter there is no one to tell.
  startProgress(undefined, "measuring", "layers")(1, 8);
});
