import type { FamilyDescription } from "@coppice/checkpoint";

/** The text of docs/reference/families.md. */
export function familiesPage(families: readonly FamilyDescription[]): string;
