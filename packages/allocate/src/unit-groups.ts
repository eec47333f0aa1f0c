import { CoppiceError } from "@coppice/core";
import type { UnitGroup, UnitOption } from "./allocate-units.js";

/** An option as the solver has it. */
export interface PreparedOption {
  readonly bytes: number;
  readonly loss: number;
  /** Its place among the options that were given. */
  readonly index: number;
  /** Bit r is set when rule r counts it. */
  readonly rules: number;
}

export interface PreparedUnit {
  /** By ascending bytes. Of options that the same rules count only those that no smaller one beats. */
  readonly options: readonly PreparedOption[];
}

export interface PreparedGroup {
  readonly units: readonly PreparedUnit[];
  readonly rules: readonly PreparedRule[];
}

export interface PreparedRule {
  readonly least: number;
  readonly most: number;
}

/** Most rules of a group, whose counts are kept side by side. */
const ruleLimit = 8;

/**
 * @throws COPPICE_USAGE for bytes that are not whole or losses that are not finite; COPPICE_PLAN_KEEP for a unit without
 * options, or a first rule that its group cannot meet
 */
export function prepareGroups<O extends UnitOption>(groups: readonly UnitGroup<O>[]): PreparedGroup[] {
  return groups.map((group) => {
    const { name, units, rules = [] } = group;
    if (rules.length > ruleLimit) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `${name} has ${rules.length} rules, expected at most ${ruleLimit}`,
      );
    }
    const prepared = {
      units: units.map((options, unit) => {
        checkOptions(options, `unit ${unit} of ${name}`);
        const all = options.map((option, index) => ({
          bytes: option.bytes,
          loss: option.loss,
          index,
          rules: rules.reduce((bits, rule, r) => (rule.counts(option) ? bits | (1 << r) : bits), 0),
        }));
        return { options: withoutBeaten(all) };
      }),
      rules: rules.map(({ least = 0, most = units.length }) => ({
        least: Math.max(0, least),
        most: Math.min(most, units.length),
      })),
    };
    prepared.rules.forEach((rule, r) => {
      checkRule(name, prepared.units, rule, r);
    });
    return prepared;
  });
}

function withoutBeaten(options: PreparedOption[]): PreparedOption[] {
  const best = new Map<number, number>();
  return options
    .sort((a, b) => a.bytes - b.bytes || a.loss - b.loss)
    .filter(({ loss, rules }) => {
      if (loss >= (best.get(rules) ?? Number.POSITIVE_INFINITY)) return false;
      best.set(rules, loss);
      return true;
    });
}

function checkOptions(options: readonly UnitOption[], name: string): void {
  if (options.length === 0) throw new CoppiceError("COPPICE_PLAN_KEEP", `${name} has no options`);
  const bad = options.find(
    ({ bytes, loss }) => !Number.isFinite(loss) || !Number.isSafeInteger(bytes) || bytes < 0,
  );
  if (!bad) return;
  throw new CoppiceError(
    "COPPICE_USAGE",
    `an option of ${name} has a loss of ${bad.loss} and takes ${bad.bytes} bytes; ` +
      "expected a finite loss and a whole number of at least 0",
  );
}

function checkRule(name: string, units: readonly PreparedUnit[], rule: PreparedRule, r: number): void {
  const bit = 1 << r;
  const possible = units.filter(({ options }) => options.some(({ rules }) => rules & bit)).length;
  const forced = units.filter(({ options }) => options.every(({ rules }) => rules & bit)).length;
  if (rule.least <= possible && forced <= rule.most && rule.least <= rule.most) return;
  throw new CoppiceError(
    "COPPICE_PLAN_KEEP",
    `rule ${r + 1} of ${name} wants ${rule.least} to ${rule.most} of its ${units.length} units; ` +
      `the options allow ${forced} to ${possible}`,
  );
}
