import {
  type Criterion,
  contractVersions,
  createRegistry,
  definePlugin,
  isPlugin,
  type OptionsOf,
  type Plugin,
  type Registrable,
} from "@coppice/core";
import * as v from "valibot";
import { describe, expect, expectTypeOf, test } from "vitest";

interface ShoutOptions {
  readonly volume: number;
  readonly word?: string | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    shout: ShoutOptions;
    whisper: Record<never, never>;
  }
}

const received: unknown[] = [];
const criterion: Criterion = { needs: { statistics: false, weights: false }, score: async () => [] };

const shout = definePlugin({
  kind: "criterion",
  name: "shout",
  contract: 1,
  summary: "Shouts.",
  reference: "https://example.org/shouting",
  options: v.strictObject({ volume: v.number(), word: v.optional(v.string(), "hey") }),
  create(options) {
    expectTypeOf(options).toEqualTypeOf<{ volume: number; word: string }>();
    received.push(options);
    return criterion;
  },
});

const whisper = definePlugin({
  kind: "criterion",
  name: "whisper",
  contract: 1,
  summary: "Whispers.",
  options: v.strictObject({}),
  create: () => criterion,
});

describe("definePlugin", () => {
  test("makes a branded value that says what it is", () => {
    expect(isPlugin(shout)).toBe(true);
    const { kind, pluginName, contract, summary, reference } = shout;
    expect([kind, pluginName, contract, summary]).toEqual(["criterion", "shout", 1, "Shouts."]);
    expect(reference).toBe("https://example.org/shouting");
    expect(whisper.reference).toBeUndefined();
    for (const other of [() => {}, { kind: "criterion" }, null, "shout"]) expect(isPlugin(other)).toBe(false);
  });

  test("validates options, fills in defaults and refuses unknown keys", async () => {
    expect(await shout.create({ volume: 3 }, undefined)).toBe(criterion);
    expect(received.at(-1)).toEqual({ volume: 3, word: "hey" });
    await expect(shout.create({ volume: "loud", pitch: 1 }, undefined)).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
      exitCode: 2,
      message: expect.stringMatching(/options of criterion:shout.*volume: .*pitch: /s),
      details: { plugin: "criterion:shout", problems: [expect.any(String), expect.any(String)] },
    });
    await expect(shout.create(undefined, undefined)).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
    });
  });

  test("awaits schemas that validate asynchronously", async () => {
    const slow = definePlugin({
      kind: "criterion",
      name: "whisper",
      contract: 1,
      summary: "Whispers later.",
      options: v.pipeAsync(
        v.strictObject({}),
        v.checkAsync(async () => false, "not today"),
      ),
      create: () => criterion,
    });
    await expect(slow.create({}, undefined)).rejects.toThrow("not today");
  });

  test("has options of the type that was declared under the name", () => {
    expectTypeOf<OptionsOf<"criterion", "shout">>().toEqualTypeOf<ShoutOptions>();
    expectTypeOf<OptionsOf<"criterion", "unheard of">>().toEqualTypeOf<unknown>();
    expectTypeOf(shout).parameter(0).toEqualTypeOf<ShoutOptions | undefined>();
    expectTypeOf(shout).toEqualTypeOf<Plugin<"criterion", "shout", ShoutOptions>>();
    // @ts-expect-error a misspelt option
    shout({ volume: 3, wrod: "hey" });
    // @ts-expect-error an option of another type
    shout({ volume: "loud" });
    definePlugin({
      kind: "criterion",
      // @ts-expect-error a name that nobody declared
      name: "mumble",
      contract: 1,
      summary: "",
      options: v.strictObject({}),
      create: () => criterion,
    });
    definePlugin({
      kind: "criterion",
      name: "shout",
      contract: 1,
      summary: "Its schema wants what users cannot know of.",
      // @ts-expect-error a schema whose input is not the declared type
      options: v.strictObject({ volume: v.string() }),
      create: () => criterion,
    });
  });
});

describe("createRegistry", () => {
  test("finds, lists and extends", () => {
    const registry = createRegistry([shout]);
    expect(registry.has("criterion", "shout")).toBe(true);
    expect(registry.has("search", "shout")).toBe(false);
    expect(registry.get("criterion", "shout")).toBe(shout);
    const more = registry.with(whisper);
    expect(more.list().map(({ pluginName }) => pluginName)).toEqual(["shout", "whisper"]);
    expect(more.list("backend")).toEqual([]);
    expect(registry.list()).toHaveLength(1);
  });

  test("names what is known when a name is not", () => {
    const registry = createRegistry([shout, whisper]);
    expect(() => registry.get("criterion", "shuot")).toThrow(
      expect.objectContaining({
        code: "COPPICE_PLUGIN_NOT_FOUND",
        exitCode: 3,
        message: 'no criterion plugin is named "shuot"; known are shout, whisper',
      }),
    );
    expect(() => registry.get("search", "shout")).toThrow("known are none");
    expect(() => registry.get("criterion", "__proto__")).toThrow("is named");
  });

  test("creates with the options of the call over those of the registration", async () => {
    const registry = createRegistry([shout({ volume: 1, word: "ho" })]);
    await registry.create("criterion", "shout", { volume: 9 }, undefined);
    expect(received.at(-1)).toEqual({ volume: 9, word: "ho" });
    await createRegistry([whisper]).create("criterion", "whisper", {}, undefined);
    await expect(
      createRegistry([shout]).create("criterion", "shout", {} as ShoutOptions, undefined),
    ).rejects.toThrow("volume");
    // @ts-expect-error options are checked against the name
    await expect(registry.create("criterion", "shout", { volume: "9" }, undefined)).rejects.toThrow("volume");
  });

  test("refuses duplicates, values that are no plugins, and other contracts", () => {
    expect(() => createRegistry([shout, shout({ volume: 1 })])).toThrow(
      expect.objectContaining({ code: "COPPICE_PLUGIN_DUPLICATE" }),
    );
    expect(() => createRegistry([shout]).with(shout)).toThrow(
      expect.objectContaining({ code: "COPPICE_PLUGIN_DUPLICATE" }),
    );
    function imposter() {}
    expect(() => createRegistry([imposter as unknown as Registrable])).toThrow(
      expect.objectContaining({ code: "COPPICE_PLUGIN_INVALID", message: "imposter is not a plugin" }),
    );
    expect(() => createRegistry([{ plugin: {}, options: {} } as unknown as Registrable])).toThrow(
      expect.objectContaining({ code: "COPPICE_PLUGIN_INVALID" }),
    );
    const later = definePlugin({
      kind: "criterion",
      name: "whisper",
      contract: contractVersions.criterion + 1,
      summary: "Whispers in the future.",
      options: v.strictObject({}),
      create: () => criterion,
    });
    expect(() => createRegistry([later])).toThrow(
      expect.objectContaining({
        code: "COPPICE_PLUGIN_CONTRACT",
        message: expect.stringMatching(/contract 2 .* supports 1/),
      }),
    );
    const strange = Object.assign(() => {}, { kind: "spell", pluginName: "x", contract: 1 });
    Object.defineProperty(strange, Symbol.for("coppice.plugin"), { value: true });
    expect(() => createRegistry([strange as unknown as Registrable])).toThrow(
      expect.objectContaining({
        code: "COPPICE_PLUGIN_CONTRACT",
        message: expect.stringContaining("no such kind"),
      }),
    );
  });
});
