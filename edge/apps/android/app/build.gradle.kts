plugins {
    id("com.android.application")
}

android {
    namespace = "org.swinhf.edge"
    compileSdk = 36

    defaultConfig {
        applicationId = "APP_PACKAGE"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64") // those that the ExecuTorch library comes for
        }
    }
}

dependencies {
    implementation("org.pytorch:executorch-android:EXECUTORCH_VERSION") // the version that exported the program
    implementation("androidx.activity:activity:1.11.0")
    implementation("androidx.camera:camera-camera2:1.6.1")
    implementation("androidx.camera:camera-lifecycle:1.6.1")
    implementation("androidx.camera:camera-view:1.6.1")
}
