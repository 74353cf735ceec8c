package org.swinhf.edge

import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

// The arithmetic of Pillow's `Image.resize`, which prepared the images of the training. Android's own resizers do not
// average over the pixels they leave out, and a model sees that.
// From version 13 on, Pillow begins with the columns for some sizes; this always begins with the rows, and a level may differ
// by one.

/** An upright picture, row by row, so that a large one need not be copied; pixels are 0xRRGGBB, higher bits are ignored. */
class Picture(val height: Int, val width: Int, val row: (y: Int) -> IntArray)

/** Pillow's filters; [support] is how far one reaches, in pixels of the smaller image. */
enum class Filter(val support: Double) {
    NEAREST(0.0),
    BILINEAR(1.0),
    BICUBIC(2.0);

    fun weight(offset: Double): Double {
        val x = abs(offset)
        return when (this) {
            NEAREST -> 1.0
            BILINEAR -> if (x < 1) 1 - x else 0.0
            BICUBIC -> when { // Keys' cubic with a = -0.5
                x < 1 -> (1.5 * x - 2.5) * x * x + 1
                x < 2 -> (((x - 5) * x + 8) * x - 4) * -0.5
                else -> 0.0
            }
        }
    }
}

private const val PRECISION_BITS = 32 - 8 - 2
private const val HALF = 1 shl (PRECISION_BITS - 1)

/** What one output pixel sees along an axis: input pixels from [first] on, with fixed-point weights. */
private class Taps(val first: Int, val weights: IntArray)

private fun taps(size: Int, newSize: Int, filter: Filter): List<Taps> {
    val scale = size.toDouble() / newSize
    if (filter == Filter.NEAREST) {
        var center = scale * 0.5 // added up as Pillow does, rounding errors included
        return List(newSize) {
            val first = min(center.toInt(), size - 1)
            center += scale
            Taps(first, intArrayOf(1 shl PRECISION_BITS))
        }
    }
    val stretch = max(scale, 1.0) // the filter grows as the image shrinks: that is the antialiasing
    val support = filter.support * stretch
    return List(newSize) { index ->
        val center = (index + 0.5) * scale
        val first = max((center - support + 0.5).toInt(), 0)
        val end = min((center + support + 0.5).toInt(), size)
        val weights = DoubleArray(end - first) { filter.weight((it + first - center + 0.5) * (1.0 / stretch)) }
        val sum = weights.sum()
        Taps(first, IntArray(weights.size) { fixedPoint(weights[it] / sum) })
    }
}

private fun fixedPoint(weight: Double): Int =
    (weight * (1 shl PRECISION_BITS) + if (weight < 0) -0.5 else 0.5).toInt()

private fun round8(sum: Int): Byte = (sum shr PRECISION_BITS).coerceIn(0, 255).toByte()

/** [picture] as RGB bytes (height, width, 3), resized with antialiasing: first along rows, then along columns. */
fun resample(picture: Picture, height: Int, width: Int, filter: Filter): ByteArray {
    val narrow = ByteArray(picture.height * width * 3)
    val columns = taps(picture.width, width, filter)
    for (y in 0 until picture.height) {
        val row = picture.row(y)
        for (x in 0 until width) {
            val taps = columns[x]
            var red = HALF
            var green = HALF
            var blue = HALF
            for (i in taps.weights.indices) {
                val pixel = row[taps.first + i]
                red += (pixel shr 16 and 255) * taps.weights[i]
                green += (pixel shr 8 and 255) * taps.weights[i]
                blue += (pixel and 255) * taps.weights[i]
            }
            val at = (y * width + x) * 3
            narrow[at] = round8(red)
            narrow[at + 1] = round8(green)
            narrow[at + 2] = round8(blue)
        }
    }
    val resized = ByteArray(height * width * 3)
    val sums = IntArray(width * 3)
    for ((y, taps) in taps(picture.height, height, filter).withIndex()) {
        sums.fill(HALF)
        for (i in taps.weights.indices) {
            val at = (taps.first + i) * sums.size
            for (x in sums.indices) sums[x] += (narrow[at + x].toInt() and 255) * taps.weights[i]
        }
        for (x in sums.indices) resized[y * sums.size + x] = round8(sums[x])
    }
    return resized
}

/** [picture] as RGB bytes (height, width, 3): stretched, or, with [cropPct], resized in its shape and cropped to its middle. */
fun fit(picture: Picture, height: Int, width: Int, cropPct: Double?, filter: Filter): ByteArray {
    if (cropPct == null) return resample(picture, height, width, filter)
    val rows = floor(height / cropPct).toInt()
    val columns = floor(width / cropPct).toInt()
    val isWide = picture.height.toLong() * columns <= picture.width.toLong() * rows
    val resizedHeight = if (isWide) rows else (columns.toDouble() * picture.height / picture.width).toInt()
    val resizedWidth = if (isWide) (rows.toDouble() * picture.width / picture.height).toInt() else columns
    val resized = resample(picture, resizedHeight, resizedWidth, filter)
    val top = (resizedHeight - height) / 2
    val left = (resizedWidth - width) / 2
    val cropped = ByteArray(height * width * 3)
    for (y in 0 until height) {
        val from = ((top + y) * resizedWidth + left) * 3
        resized.copyInto(cropped, y * width * 3, from, from + width * 3)
    }
    return cropped
}

/** RGB bytes (height, width, 3) as floats (3, height, width) in [0, 1]. */
fun toPlanes(pixels: ByteArray): FloatArray {
    val size = pixels.size / 3
    return FloatArray(pixels.size) { (pixels[it % size * 3 + it / size].toInt() and 255) / 255f }
}
