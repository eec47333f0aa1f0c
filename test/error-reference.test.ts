import { readFileSync } from "node:fs";
import { errorCodes } from "@coppice/core";
import { expect, it } from "vitest";

const page = readFileSync(new URL("../docs/reference/errors.md", import.meta.url), "utf8");

it("lists every error code with its exit code and meaning, and no other", () => {
  const documented = [...page.matchAll(/^\| `(COPPICE_\w+)` \| (\d+) \| (.*) \|$/gm)].map(
    ([, code, exit, meaning]) => [code, { exit: Number(exit), meaning }],
  );
  expect(documented.map(([code]) => code)).toEqual([...new Set(documented.map(([code]) => code))]);
  expect(Object.fromEntries(documented)).toEqual(errorCodes);
});

it("mentions no code that does not exist", () => {
  const mentioned = new Set([...page.matchAll(/COPPICE_[A-Z_]+[A-Z]/g)].map(([code]) => code));
  mentioned.delete("COPPICE_DEBUG"); // an environment variable
  expect([...mentioned].filter((code) => !(code in errorCodes))).toEqual([]);
});
