import type { CheckedRunRequest } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { groupTokens } from "../src/group-tokens.js";
import { packRows } from "../src/packed-rows.js";

const ids = fc.array(fc.nat(2), { minLength: 1, maxLength: 6 }).map((tokens) => Int32Array.from(tokens));
const batch = fc.array(ids, { minLength: 1, maxLength: 8 });

function checkedOf(sequences: readonly Int32Array[]): CheckedRunRequest {
  const starts = [0];
  for (const sequence of sequences) starts.push((starts.at(-1) as number) + sequence.length);
  return { tokens: starts.at(-1) as number, starts: Int32Array.from(starts), from: 0, to: 1 };
}

describe("packed rows", () => {
  test("one row for every different beginning, and every token finds its own", () => {
    fc.assert(
      fc.property(batch, fc.boolean(), (sequences, share) => {
        const pieces = sequences.map(({ length }, sequence) => ({
          sequence,
          begin: 0,
          end: length,
          past: 0,
        }));
        const packed = packRows(pieces, sequences, checkedOf(sequences), 3, share);
        const beginnings = sequences.flatMap((tokens, s) =>
          Array.from(tokens, (_, i) => (share ? "" : `${s}:`) + tokens.slice(0, i + 1).join()),
        );
        const distinct = [...new Set(beginnings)];
        expect(packed.count).toBe(distinct.length);
        // Rows and beginnings correspond one to one.
        expect(Array.from(packed.rowOf, (row) => distinct[row])).toEqual(beginnings);
        expect(Array.from(packed.tokenOf, (token) => beginnings[token])).toEqual(distinct);
        // The padded block holds the row of every token, and `unpad` finds a place of every row.
        for (const [s, { length }] of sequences.entries()) {
          for (let i = 0; i < packed.longest; i++) {
            const row = packed.pad[s * packed.longest + i] as number;
            if (i < length) expect(row).toBe(packed.rowOf[(packed.offsets[s] as number) + i]);
            expect(row).toBeLessThan(packed.count);
          }
        }
        expect(Array.from(packed.unpad, (place) => packed.pad[place])).toEqual(distinct.map((_, row) => row));
      }),
    );
  });
});

describe("grouped tokens", () => {
  test("every choice that runs once, sorted by slot, and back", () => {
    const routing = fc
      .tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 3, max: 9 }), fc.integer({ min: 1, max: 12 }))
      .chain(([topK, slots, tokens]) => {
        const choice = fc.oneof({ weight: 3, arbitrary: fc.nat(slots - 1) }, fc.constant(-1));
        const ofToken = fc.uniqueArray(choice, {
          minLength: topK,
          maxLength: topK,
          comparator: (a, b) => a === b && a >= 0,
        });
        return fc.record({
          topK: fc.constant(topK),
          slotCount: fc.constant(slots),
          chosen: fc.array(ofToken, { minLength: tokens, maxLength: tokens }),
        });
      });
    fc.assert(
      fc.property(
        routing,
        fc.boolean(),
        fc.func(fc.boolean()),
        ({ topK, slotCount, chosen }, company, known) => {
          const slots = Int32Array.from(chosen.flat());
          const gates = Float32Array.from(slots, (slot, choice) => (slot < 0 ? 0 : choice + 1));
          const isKnown = (slot: number, token: number) => known(slot, token);
          const tokenOf = (choice: number) => Math.floor(choice / topK);
          const running = slots.filter((slot, choice) => slot >= 0 && !isKnown(slot, tokenOf(choice)));
          const groups = groupTokens({ topK, slots, gates }, slotCount, { company, isKnown });
          expect(groups.runs).toBe(running.length);
          expect(groups.used).toEqual([...new Set(running)].sort((a, b) => a - b));
          const sizes = groups.used.map((slot) => running.filter((other) => other === slot).length);
          expect(groups.sizes).toEqual(sizes.map((size) => (company && size === 1 ? 2 : size)));
          const rows = groups.sizes.reduce((sum, size) => sum + size, 0);
          expect(groups.rows).toHaveLength(rows);
          const { length: first } = groups.known;
          const slotAt = groups.used.flatMap((slot, i) =>
            new Array<number>(groups.sizes[i] as number).fill(slot),
          );
          for (const [token, of] of chosen.entries()) {
            for (const [rank, slot] of of.entries()) {
              const place = groups.places[rank * chosen.length + token] as number;
              expect(groups.gates[rank * chosen.length + token]).toBe(gates[token * topK + rank]);
              if (slot < 0) expect(place).toBe(first + rows);
              else if (isKnown(slot, token)) expect(groups.known[place]).toBe(token * topK + rank);
              else {
                expect(groups.rows[place - first]).toBe(token);
                expect(slotAt[place - first]).toBe(slot);
              }
            }
          }
          const places = [...groups.places].filter((place) => place < first + rows);
          expect(new Set(places).size).toBe(first + running.length);
          // A row that keeps another one company is that row once more.
          for (const [row, token] of groups.rows.entries()) {
            if (!places.includes(first + row)) expect(groups.rows[row - 1]).toBe(token);
          }
        },
      ),
    );
  });
});
