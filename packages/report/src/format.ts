/** A score: three digits after the point, no leading zero games. */
export function formatScore(value: number): string {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3);
}

/** A difference, always with its sign. */
export function formatDifference(value: number): string {
  if (!Number.isFinite(value)) return "–";
  return `${value < 0 ? "−" : "+"}${formatScore(Math.abs(value))}`;
}

/** Bytes in decimal units, as disks and download pages count. */
export function formatBytes(bytes: number): string {
  return scaled(bytes, ["B", "kB", "MB", "GB", "TB"], " ");
}

/** Counts: 27.1 M. */
export function formatCount(count: number): string {
  return scaled(count, ["", "k", "M", "G", "T"], " ");
}

export function formatShare(part: number, whole: number): string {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "–";
}

function scaled(value: number, units: readonly string[], space: string): string {
  let unit = 0;
  let rest = value;
  while (rest >= 999.5 && unit < units.length - 1) {
    rest /= 1000;
    unit++;
  }
  const digits = unit === 0 || rest >= 100 ? 0 : rest >= 10 ? 1 : 2;
  return `${rest.toFixed(digits)}${units[unit] ? space : ""}${units[unit]}`;
}
