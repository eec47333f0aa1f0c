import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { replaceJsonValues } from "../src/json-edit.js";

describe("replaceJsonValues", () => {
  it("replaces values of any kind, at the path alone", () => {
    const text = '{ "a" : 1.0 , "b":{"a":2,"c":[{"a":3}, "a"]},"s":"a\\":{[","c": [1, {"x":2}]\n}';
    expect(replaceJsonValues(text, new Map([["a", "9"]]))).toBe(text.replace("1.0", "9"));
    expect(replaceJsonValues(text, new Map([["b.a", "9"]]))).toBe(text.replace(":2,", ":9,"));
    expect(replaceJsonValues(text, new Map([["c", "9"]]))).toBe(text.replace('[1, {"x":2}]', "9"));
    expect(replaceJsonValues(text, new Map([["s", "9"]]))).toBe(text.replace('"a\\":{["', "9"));
    expect(replaceJsonValues(text, new Map([["b", "null"]]))).toBe(text.replace(/\{"a":2.*?\]\}/, "null"));
    expect(
      replaceJsonValues(
        text,
        new Map([
          ["none", "9"],
          ["b.c.a", "9"],
        ]),
      ),
    ).toBe(text);
  });

  it("does not take an element of a list for a key", () => {
    const text = '{"b":{"a":{"x":1}},"c":[{"x":2}]}';
    expect(replaceJsonValues(text, new Map([["c.a.x", "9"]]))).toBe(text);
    expect(replaceJsonValues(text, new Map([["c..x", "9"]]))).toBe(text);
  });

  it("does what changing the parsed object does", () => {
    const keys = fc.constantFrom("a", "b", "num_experts", "x y", '"', "\\", "ü");
    const value = fc.letrec((tie) => ({
      any: fc.oneof(
        { maxDepth: 3 },
        fc.integer(),
        fc.string(),
        fc.constant(null),
        fc.array(tie("any"), { maxLength: 3 }),
        fc.dictionary(keys, tie("any"), { maxKeys: 4 }),
      ),
    })).any;
    const spaces = fc.constantFrom(0, 1, "\t");
    fc.assert(
      fc.property(fc.dictionary(keys, value), keys, keys, spaces, (object, outer, inner, space) => {
        const text = JSON.stringify(object, null, space);
        const expected = structuredClone(object) as Record<string, unknown>;
        if (Object.hasOwn(expected, outer)) expected[outer] = 42;
        expect(JSON.parse(replaceJsonValues(text, new Map([[outer, "42"]])))).toEqual(expected);
        const nested = structuredClone(object) as Record<string, Record<string, unknown>>;
        const child = nested[outer];
        if (
          typeof child === "object" &&
          child !== null &&
          !Array.isArray(child) &&
          Object.hasOwn(child, inner)
        ) {
          child[inner] = 42;
        }
        expect(JSON.parse(replaceJsonValues(text, new Map([[`${outer}.${inner}`, "42"]])))).toEqual(nested);
      }),
      { numRuns: 3000 },
    );
  });

  it("inserts values first in their object, whatever else it holds", () => {
    const insert = new Map([
      ["k", "1"],
      ["a.b.n", "[2, 3]"],
      ["e.x", "true"],
      ["missing.x", "5"],
    ]);
    const text = '{"a" : {"c": [{"b": {}}], "b":{ "z":1.0}}, "e": { }, "b": {"n": {}}}';
    expect(replaceJsonValues(text, new Map([["a.b.z", "2"]]), insert)).toBe(
      '{"k": 1, "a" : {"c": [{"b": {}}], "b":{"n": [2, 3],  "z":2}}, "e": {"x": true }, "b": {"n": {}}}',
    );
    expect(replaceJsonValues("{}", new Map(), insert)).toBe('{"k": 1}');
  });
});
