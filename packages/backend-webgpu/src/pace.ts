import type { WorkPace } from "@coppice/core";

/**
 * Few tokens leave most of a device idle, and every answer takes half a millisecond to come back; a device does one thing after
 * another, so a second runner gains nothing.
 */
export const pace: WorkPace = { batchTokens: 4096, runners: 1 };
