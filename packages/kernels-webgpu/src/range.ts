/** 0 to `length`, without `length` itself. */
export const range = (length: number) => Array.from({ length }, (_, i) => i);
