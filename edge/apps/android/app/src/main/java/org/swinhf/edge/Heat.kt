package org.swinhf.edge

import kotlin.math.abs
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt

// The arithmetic of `edge.device.explanation`.

private val FOR = intArrayOf(214, 39, 40)
private val AGAINST = intArrayOf(31, 119, 180)
private const val OPACITY = 0.75f // of the strongest place

/** A picture in grey, pixels 0xAARRGGBB, under what speaks for a class, in red, and against it, in blue. */
class Heat(val height: Int, val width: Int, val pixels: IntArray)

/** Class [number] of the class maps (K, [rows], [columns]) over a picture, bytes ([height], [width], 3). */
fun heatOf(maps: FloatArray, number: Int, rows: Int, columns: Int, seen: ByteArray, height: Int, width: Int): Heat {
    val start = number * rows * columns
    val strongest = (start until start + rows * columns).fold(1e-12f) { found, at -> max(found, abs(maps[at])) }
    val (vertical, horizontal) = places(rows, height) to places(columns, width)
    val pixels = IntArray(height * width) { at ->
        val level = maps.between(start, columns, vertical[at / width], horizontal[at % width]) / strongest
        val opacity = OPACITY * min(abs(level), 1f)
        val (red, green, blue) = List(3) { seen[3 * at + it].toInt() and 255 }
        val grey = red * 19595 + green * 38470 + blue * 7471 + 0x8000 shr 16 // as Pillow rounds it
        val colour = if (level > 0) FOR else AGAINST
        colour.fold(255) { packed, own -> packed shl 8 or (grey + opacity * (own - grey)).roundToInt() }
    }
    return Heat(height, width, pixels)
}
