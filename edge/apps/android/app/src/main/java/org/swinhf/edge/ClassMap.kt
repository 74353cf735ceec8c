package org.swinhf.edge

import kotlin.math.roundToInt

// The arithmetic of `edge.device.segmentation`: logits are enlarged as PyTorch enlarges them, classes to the nearest.

private const val OPACITY = 0.55 // of the colours over the picture

/** The class of each pixel, row by row. */
class ClassMap(val height: Int, val width: Int, val classes: IntArray) {
    /** The share of the pixels of each of [count] classes. */
    fun shares(count: Int): DoubleArray {
        val shares = DoubleArray(count)
        for (number in classes) shares[number] += 1.0 / classes.size
        return shares
    }

    /** Row [y] of the picture, pixels 0xRRGGBB, under the colours of the classes. */
    fun over(row: IntArray, y: Int, palette: List<IntArray>): IntArray = IntArray(width) { x ->
        val colour = palette[classes[y * width + x]]
        var mixed = 255 shl 24
        for (channel in 0 until 3) {
            val shift = 16 - 8 * channel
            val own = row[x] shr shift and 255
            mixed = mixed or ((own + OPACITY * (colour[channel] - own)).roundToInt() shl shift)
        }
        mixed
    }
}

/** The most probable class of each pixel of a picture, from logits ([count], [rows], [columns]). */
fun classMapOf(logits: FloatArray, count: Int, rows: Int, columns: Int, height: Int, width: Int): ClassMap {
    val (vertical, horizontal) = places(rows, height) to places(columns, width)
    val classes = IntArray(height * width)
    for (y in 0 until height) for (x in 0 until width) {
        var best = Float.NEGATIVE_INFINITY
        for (number in 0 until count) {
            val value = logits.between(number * rows * columns, columns, vertical[y], horizontal[x])
            if (value > best) {
                best = value
                classes[y * width + x] = number
            }
        }
    }
    return ClassMap(height, width, classes)
}

/** Classes ([rows], [columns]) at the size of a picture, each pixel with the class of the nearest one. */
fun classMapOf(given: ByteArray, rows: Int, columns: Int, height: Int, width: Int): ClassMap {
    val classes = IntArray(height * width) { at ->
        val row = ((at / width + 0.5) * rows / height).toInt()
        val column = ((at % width + 0.5) * columns / width).toInt()
        given[row * columns + column].toInt() and 255
    }
    return ClassMap(height, width, classes)
}
