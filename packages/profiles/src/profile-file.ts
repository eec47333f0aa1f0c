import { CoppiceError, isCoppiceError, packFloats, unpackFloats } from "@coppice/core";
import * as v from "valibot";
import type { Profile, ProfileLayer, ProfileStore } from "./profile-store.js";
import { statisticLength, taskStatistics } from "./task-statistic.js";

/** Version of the file that this package writes and reads. */
export const profilesVersion = 1;

/** Limits of the parser; each exists so that a wrong or hostile file fails with a message, not with memory. */
export const profileLimits = {
  /** Characters of a file: 500 tasks of a model of 58 layers with 256 experts, where a profile takes 500 kB. */
  fileChars: 256 * 2 ** 20,
  /** Profiles of a store; each is compared with every prompt. */
  profiles: 10_000,
  /** UTF-16 units of a name, so that messages and tables stay readable. */
  nameLength: 200,
  /** MoE layers, ten times those of the deepest known model. */
  layers: 1_000,
  /** Experts of a layer, eight times those of the widest known model; a Gram matrix then has 8 million values. */
  experts: 4_096,
} as const;

const format = "coppice.profiles";

/** The store as text of JSON; floats are packed, so that every bit survives. Equal stores give equal text. */
export function encodeProfiles({ model, statistic, layers, profiles }: ProfileStore): string {
  return `${JSON.stringify({
    format,
    version: profilesVersion,
    model: { family: model.family, fingerprint: model.fingerprint },
    statistic,
    layers: layers.map(({ layer, experts }) => ({ layer, experts })),
    profiles: profiles.map((profile) => ({
      name: profile.name,
      general: profile.general,
      criterion: profile.criterion,
      tokens: profile.tokens,
      vector: packFloats(profile.vector),
      layers: profile.layers.map(({ ranking, probability }) => ({
        ranking,
        probability: packFloats(probability),
      })),
    })),
  })}\n`;
}

const name = v.pipe(v.string(), v.minLength(1), v.maxLength(profileLimits.nameLength));
const index = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const schema = v.strictObject({
  format: v.literal(format),
  version: v.literal(profilesVersion),
  model: v.strictObject({
    family: name,
    fingerprint: v.pipe(v.string(), v.minLength(1), v.maxLength(1_000)),
  }),
  statistic: v.picklist(taskStatistics),
  layers: v.pipe(
    v.array(
      v.strictObject({
        layer: index,
        experts: v.pipe(index, v.minValue(1), v.maxValue(profileLimits.experts)),
      }),
    ),
    v.minLength(1),
    v.maxLength(profileLimits.layers),
  ),
  profiles: v.pipe(
    v.array(
      v.strictObject({
        name,
        general: v.boolean(),
        criterion: name,
        tokens: v.pipe(v.number(), v.finite(), v.gtValue(0)),
        vector: v.string(),
        layers: v.array(v.strictObject({ ranking: v.array(index), probability: v.string() })),
      }),
    ),
    v.maxLength(profileLimits.profiles),
  ),
});

/**
 * The inverse of `encodeProfiles`, for untrusted text.
 * @param file name for messages
 * @throws COPPICE_PROFILE_FORMAT
 */
export function decodeProfiles(text: string, file: string): ProfileStore {
  if (text.length > profileLimits.fileChars) {
    throw refused(file, `it has ${text.length} characters, at most ${profileLimits.fileChars} are read`);
  }
  const parsed = v.safeParse(schema, parseJson(text, file), { abortEarly: true });
  if (!parsed.success) {
    const [issue] = parsed.issues;
    throw refused(file, `${v.getDotPath(issue) ?? "the top"}: ${issue.message.slice(0, 200)}`);
  }
  const { model, statistic, layers, profiles } = parsed.output;
  if (layers.some(({ layer }, i) => i > 0 && layer <= (layers[i - 1]?.layer ?? 0))) {
    throw refused(file, "its layers are not in ascending order");
  }
  // Sorted, and so each name once; JavaScript compares by UTF-16 units, as the writer does.
  const disorder = profiles.findIndex((profile, i) => i > 0 && profile.name <= (profiles[i - 1]?.name ?? ""));
  if (disorder >= 0)
    throw refused(file, `profile ${disorder} is not in the order of names, or a name is there twice`);
  if (profiles.filter(({ general }) => general).length > 1)
    throw refused(file, "it has several general profiles");
  const length = statisticLength(statistic, layers[0]?.experts ?? 0);
  return {
    model,
    statistic,
    layers,
    profiles: profiles.map((profile): Profile => {
      const where = `profile ${JSON.stringify(profile.name)}`;
      if (profile.layers.length !== layers.length) {
        throw refused(file, `${where} has ${profile.layers.length} layers, the store ${layers.length}`);
      }
      return {
        ...profile,
        vector: floats(profile.vector, length, file, `${where}, vector`),
        layers: profile.layers.map(({ ranking, probability }, i): ProfileLayer => {
          const { experts = 0 } = layers[i] ?? {};
          const at = `${where}, layers[${i}]`;
          checkRanking(ranking, experts, file, at);
          const values = floats(probability, experts, file, `${at}, probability`);
          if (values.some((value) => value < 0 || value > 1)) {
            throw refused(file, `${at} has a probability outside of 0 to 1`);
          }
          return { ranking, probability: values };
        }),
      };
    }),
  };
}

function checkRanking(ranking: readonly number[], experts: number, file: string, where: string): void {
  const seen = new Set(ranking);
  if (ranking.length === experts && seen.size === experts && ranking.every((expert) => expert < experts))
    return;
  throw refused(file, `${where} ranks ${ranking.length} experts, expected each of 0 to ${experts - 1} once`);
}

function floats(text: string, count: number, file: string, what: string): Float32Array {
  try {
    return unpackFloats(text, { count, what });
  } catch (error) {
    throw isCoppiceError(error) ? refused(file, error.message) : error;
  }
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw refused(file, `it is not JSON: ${String(cause).slice(0, 200)}`);
  }
}

function refused(file: string, message: string): CoppiceError {
  return new CoppiceError("COPPICE_PROFILE_FORMAT", `${file} is not a usable file of profiles: ${message}`, {
    hint: "build the profiles again",
  });
}
