import * as v from "valibot";

/** What spans are made of where a plugin's user does not say. */
export const defaultSpans = { sinks: 4, blockSize: 16 } as const;

export const sinksSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(4096));
export const blockSizeSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1024));
/** A share of attention that is to be kept. */
export const shareSchema = v.pipe(v.number(), v.gtValue(0), v.maxValue(1));
export const rowsSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(8), v.maxValue(4096));
