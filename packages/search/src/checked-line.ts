import { crc32 } from "node:zlib";
import type { JournalRecord } from "./journal.js";

const prefix = /^\{"crc32":"([0-9a-f]{8})","record":/;
const prefixLength = '{"crc32":"00000000","record":'.length;

/** A record as a line of JSON with the CRC-32 of its text, newline included. */
export function encodeLine(record: JournalRecord): string {
  const text = JSON.stringify(record);
  return `{"crc32":"${checksum(text)}","record":${text}}\n`;
}

function checksum(text: string): string {
  return crc32(text).toString(16).padStart(8, "0");
}

/** The record of a whole line without its newline, or undefined when the line is not as it was written. */
export function decodeLine(line: string): JournalRecord | undefined {
  const sum = prefix.exec(line)?.[1];
  if (sum === undefined || !line.endsWith("}")) return undefined;
  const text = line.slice(prefixLength, -1);
  if (checksum(text) !== sum) return undefined;
  try {
    const record: unknown = JSON.parse(text);
    return isRecord(record) ? record : undefined;
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is JournalRecord {
  return typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
}
