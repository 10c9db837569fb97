/** Figures made of figures: walls, products, steps, films, columns. */

export const MANY = {};
