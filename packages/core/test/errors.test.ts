import {
  abortedError,
  CoppiceError,
  errorCodes,
  isCoppiceError,
  reviveError,
  throwIfAborted,
} from "@coppice/core";
import { describe, expect, test } from "vitest";

describe("CoppiceError", () => {
  const error = new CoppiceError("COPPICE_PLAN_KEEP", "keep=1 is below top-k=2", {
    hint: "keep at least 2",
    details: { keep: 1, topK: 2 },
    cause: new Error("because"),
    retryable: true,
  });

  test("carries code, hint, details, cause and the exit code of its table", () => {
    expect(error).toBeInstanceOf(Error);
    expect(error).toMatchObject({
      name: "CoppiceError",
      code: "COPPICE_PLAN_KEEP",
      message: "keep=1 is below top-k=2",
      hint: "keep at least 2",
      details: { keep: 1, topK: 2 },
      retryable: true,
      exitCode: 2,
    });
    expect((error.cause as Error).message).toBe("because");
  });

  test("has defaults", () => {
    const plain = new CoppiceError("COPPICE_INTERNAL", "impossible");
    expect(plain).toMatchObject({ hint: undefined, details: {}, retryable: false });
    expect("cause" in plain).toBe(false);
    expect(plain.toJSON()).toEqual({
      code: "COPPICE_INTERNAL",
      message: "impossible",
      details: {},
      retryable: false,
    });
  });

  test("survives JSON, as when it crosses a process", () => {
    const revived = reviveError(JSON.parse(JSON.stringify(error)));
    expect(isCoppiceError(revived, "COPPICE_PLAN_KEEP")).toBe(true);
    expect(revived.toJSON()).toEqual(error.toJSON());
    expect(revived.exitCode).toBe(2);
    expect(reviveError(new CoppiceError("COPPICE_INTERNAL", "x").toJSON()).hint).toBeUndefined();
  });

  test("is known by its brand, which another copy of core shares", () => {
    expect(isCoppiceError(error)).toBe(true);
    expect(isCoppiceError(error, "COPPICE_USAGE")).toBe(false);
    const foreign = Object.assign(new Error("from another copy"), { code: "COPPICE_USAGE" });
    expect(isCoppiceError(foreign)).toBe(false);
    Object.defineProperty(foreign, Symbol.for("coppice.error"), { value: true });
    expect(isCoppiceError(foreign, "COPPICE_USAGE")).toBe(true);
    for (const other of [null, undefined, "COPPICE_USAGE", 3, {}, new Error("plain")]) {
      expect(isCoppiceError(other)).toBe(false);
    }
    expect(Object.keys(error)).not.toContain("coppice.error");
  });
});

test("aborting gives one code and keeps the reason", () => {
  const controller = new AbortController();
  throwIfAborted(undefined, "testing");
  throwIfAborted(controller.signal, "testing");
  controller.abort("enough");
  expect(() => throwIfAborted(controller.signal, "testing")).toThrow(
    expect.objectContaining({ code: "COPPICE_ABORTED", message: "stopped while testing", cause: "enough" }),
  );
  expect(abortedError(undefined, "testing").exitCode).toBe(130);
});

test("every code is well formed", () => {
  for (const [code, { exit, meaning }] of Object.entries(errorCodes)) {
    expect(code).toMatch(/^COPPICE_[A-Z]+(_[A-Z]+)*$/);
    expect([1, 2, 3, 4, 5, 130]).toContain(exit);
    expect(meaning).toMatch(/^\S.*[^.]\.$/);
  }
});
